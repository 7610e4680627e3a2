# Tab completion of Invoke's tasks for bash. To have it always:
#     inv dev.completion bash >~/.inv-completion.bash
#     echo 'source ~/.inv-completion.bash' >>~/.bashrc
# It knows new tasks by itself, and leaves other Invoke projects to Invoke.

_nv_candidates=@CANDIDATES@

_nv_complete() {
    local line=${COMP_LINE:0:COMP_POINT} word words files=
    IFS=$' \t\n' read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    words[0]=$1
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        if [[ $word == :files ]]; then
            files=yes
        else
            # to bash, what follows the = of --flag=value is a word of its own
            [[ $word == -*=* ]] && word=${word#*=}
            COMPREPLY+=("$word")
        fi
    done < <(sh -c "$_nv_candidates" sh "${words[@]}" </dev/null 2>/dev/null)
    # files only where one belongs; bash 3 has no compopt, and offers them wherever there is nothing else
    [[ $files ]] || compopt +o default 2>/dev/null
}
complete -o default -F _nv_complete @PROGRAMS@
