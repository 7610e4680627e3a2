#compdef @PROGRAMS@
# Tab completion of Invoke's tasks for zsh. To have it always:
#     inv dev.completion zsh >~/.inv-completion.zsh
#     echo 'source ~/.inv-completion.zsh' >>~/.zshrc
# It knows new tasks by itself, and leaves other Invoke projects to Invoke.

_nv_candidates=@CANDIDATES@

_nv_complete() {
    local line
    local -a found
    for line in "${(@f)$(sh -c "$_nv_candidates" sh "${(@)words[1,CURRENT-1]}" "$PREFIX" </dev/null 2>/dev/null)}"; do
        if [[ $line == :files ]]; then
            [[ $PREFIX == -*=* ]] && compset -P '*='
            _files
            return
        fi
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    _describe 'what comes next' found
}

if (( ! $+functions[compdef] )); then
    autoload -Uz compinit && compinit
fi
compdef _nv_complete @PROGRAMS@
