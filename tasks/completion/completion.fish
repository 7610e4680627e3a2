# Tab completion of Invoke's tasks for fish. To have it always:
#     inv dev.completion fish >~/.config/fish/conf.d/inv-completion.fish
# It knows new tasks by itself, and leaves other Invoke projects to Invoke.

set -g _nv_candidates @CANDIDATES@

function _nv_complete
    set -l words (commandline -opc)
    while string match -qr '^\w+=' -- $words[1] # variables before the command
        set -e words[1]
    end
    for line in (sh -c $_nv_candidates sh $words (commandline -ct) </dev/null 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path (string replace -r '^-[^=]*=' '' -- (commandline -ct))
        else
            echo $line
        end
    end
end

for program in @PROGRAMS@
    complete -c $program -e
    complete -c $program -k -f -a '(_nv_complete)'
end
