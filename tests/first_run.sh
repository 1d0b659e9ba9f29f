#!/usr/bin/env bash
# What `make run` does once everything is built: starts glmd with the bundled
# model on a socket of its own, asks it four questions, and stays in the
# foreground until Ctrl-C. RUN_ONCE=1 ends after the questions.
set -euo pipefail

bin=$1 model=$2
# Where glmctl looks by itself, unless somebody else's daemon is there.
if [[ -n ${XDG_RUNTIME_DIR:-} && -w $XDG_RUNTIME_DIR && ! -e $XDG_RUNTIME_DIR/glmd/glmd.sock ]]; then
  folder=$XDG_RUNTIME_DIR/glmd
  mkdir -p "$folder"
  ask=("$bin/glmctl")
else
  folder=$(mktemp -d /tmp/glmd.XXXXXX)
  ask=("$bin/glmctl" --socket "$folder/glmd.sock")
fi
socket=$folder/glmd.sock
log=$folder/glmd.log
glmd=

finish() {
  status=$?
  trap - EXIT
  if [[ -n $glmd ]] && kill -TERM "$glmd" 2>/dev/null; then
    wait "$glmd" || status=$?
    echo "glmd has ended."
  fi
  if ((status != 0)) && [[ -s $log ]]; then cat "$log" >&2; fi
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT
# glmd is told to end by `finish` alone, and once: a second signal would cut answers short.
trap 'exit 0' INT TERM

show() {
  # Quoted as people would, not as printf %q does.
  local word
  printf '\n$ glmctl'
  for word in "$@"; do
    if [[ $word == *[^A-Za-z0-9=,./-]* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi
  done
  printf '\n'
  "${ask[@]}" "$@"
}

setsid "$bin/glmd" --model "$model" --socket "$socket" 2>"$log" &
glmd=$!
# A minute is far more than loading takes; a daemon that ended is not waited for.
for _ in $(seq 600); do
  if "${ask[@]}" --output json status 2>/dev/null | grep -q '"phase": *"ready"'; then break; fi
  kill -0 "$glmd" 2>/dev/null || { wait "$glmd"; exit 1; }
  sleep 0.1
done

show infill "Failed to [MASK] to the server."
show infill "Enter the IP [MASK] of your bridge."
show classify --task severity "Failed to connect to broker: timed out"
show infill --task intent "turn off the lights in the kitchen"

[[ -z ${RUN_ONCE:-} ]] || exit 0
cat <<END

glmd answers on $socket. In another terminal, type

  ${ask[*]} infill "Please [MASK] the lights in the garage."
  ${ask[*]} top
  curl --unix-socket $socket http://glmd/v1/status

Ctrl-C ends it.
END
wait "$glmd"
