#!/bin/sh
# Rendered by nv-devstack (inv data.schedule): what the host's scheduler runs.
$exports
cd $root || exit 1
mkdir -p $folder && (umask 077 && : >> $log) && exec >> $log 2>&1 || exit 1
exec $python $inv data.schedule --run
