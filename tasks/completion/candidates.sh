# What may come next on a command line, a line each, with a tab before what it means; ":files" where a file's name belongs.
# Arguments: the program as it was typed, the words after it, the last one as far as it is written (it may be empty).
# Asking inv takes a quarter of a second, so what it knows of this checkout is kept in a file; whenever the tasks or the
# settings are newer than that, inv is asked again. Any sh and any awk will do.
program=$1
case $program in "~/"*) program=$HOME/${program#"~/"} ;; esac
shift

# inv is also other projects' program; nv works on any folder with settings
case ${program##*/} in nv) mark=invoke.yaml ;; *) mark=tasks/completion/candidates.sh ;; esac
root=$PWD
until [ -f "$root/$mark" ]; do
    if [ -z "$root" ]; then # not ours: Invoke's own way
        "$program" --complete -- "${program##*/} $*" | awk -v word="$(for word; do :; done; echo "$word")" \
            'index($0, word) == 1'
        exit
    fi
    root=${root%/*}
done

folder=${XDG_CACHE_HOME:-$HOME/.cache}/nv-devstack/completion
table=$folder/$(printf %s "$mark$root" | cksum | tr ' ' -)
newer() {
    tasks=$(awk -F '\t' '$1 == "folder" && $2 == "tasks" { print $3; exit }' "$table")
    [ -d "$tasks" ] || echo gone
    find "$tasks" "$root/invoke.yaml" "$root/.env" -name __pycache__ -prune -o -newer "$table" -print 2>/dev/null
}
if [ ! -s "$table" ] || [ -n "$(newer | head -n 1)" ]; then
    mkdir -p "$folder"
    trap 'rm -f "$table.$$"' EXIT
    trap 'exit 130' HUP INT TERM
    "$program" dev.completion table >"$table.$$" && mv "$table.$$" "$table"
fi

# shellcheck disable=SC2016  # awk's own variables
NV_WORDS=$(printf '%s\n' "$@" && echo .) NV_ENV=${NV_ENV-} awk -F '\t' '
$1 == "folder" { folder[$2] = $3; next }
$1 == "task" { task[$2]; order[++tasks] = $2; help[$2] = $3; next }
# a flag or a positional argument: its task, its name, what it takes, its values, what it means
{
    takes[$2, $3] = $4; values[$2, $3] = $5; about[$2, $3] = $6
    if ($4 == "word") positional[$2, ++count[$2]] = $3
    else flags[$2, ++number[$2]] = $3
}
function kind(name) { return (now, name) in takes ? takes[now, name] : ("", name) in takes ? takes["", name] : "" }
function say(word, text) { if (index(word, current) == 1) print word "\t" text }
function say_tasks(  i) { for (i = 1; i <= tasks; i++) say(order[i], help[order[i]]) }
function say_values(of, name, before,  list, i, n) {
    list = (of, name) in values ? values[of, name] : values["", name]
    # a path goes wherever a name does
    if (list == "" || (list ~ /@backups/ && current ~ /\//)) { print ":files"; return }
    n = split(list, word, " ")
    for (i = 1; i <= n; i++)
        if (word[i] == "@backups") say_names("*.json", folder["backups"] (env == "dev" ? "" : "/" env), before)
        else if (word[i] == "@environments") say_names("*/", folder["environments"], before)
        else say(before word[i], "")
}
function say_names(pattern, where, before,  line, command) {
    gsub("\047", "\047\\\047\047", where)
    command = "cd \047" where "\047 && for one in " pattern "; do [ ! -e \"$one\" ] || echo \"$one\"; done"
    while ((command | getline line) > 0) {
        sub(/\/$|\.json$/, "", line)
        # what the shell would read as something else is left to the person
        if (line ~ /^[A-Za-z0-9_][A-Za-z0-9._@%+:,-]*$/) say(before line, "")
    }
    close(command)
}
END {
    env = ENVIRON["NV_ENV"] ? ENVIRON["NV_ENV"] : folder["environment"]
    n = split(ENVIRON["NV_WORDS"], words, "\n") - 1
    current = words[n]
    now = ""; flag = ""; filled = 0
    for (i = 1; i < n; i++) {
        word_ = words[i]
        if (word_ == "--") { print ":files"; exit } # what follows is a command of its own
        what = kind(flag)
        if (what == "value" || (what == "maybe" && word_ !~ /^-/ && !(word_ in task))) { flag = ""; continue }
        flag = ""
        if (word_ ~ /^-/) {
            used[word_]
            if (word_ !~ /=/) flag = word_
        } else if (now != "" && filled < count[now]) filled++
        else if (word_ in task) { now = word_; filled = 0; split("", used) }
    }
    what = kind(flag)
    if (current ~ /^-.*=/) {
        name = current; sub(/=.*/, "", name)
        say_values(now, name, name "=")
    } else if (what == "value") say_values(now, flag, "")
    else if (current ~ /^-/) {
        for (i = 1; i <= number[now]; i++)
            if (flags[now, i] ~ /^--/ && !(flags[now, i] in used)) say(flags[now, i], about[now, flags[now, i]])
        if (now != "") say("--help", about["", "--help"])
    } else if (now != "" && filled < count[now]) say_values(now, positional[now, filled + 1], "")
    else {
        if (what == "maybe" && (now, flag) in values && values[now, flag] != "") say_values(now, flag, "")
        say_tasks()
    }
}' "$table"
