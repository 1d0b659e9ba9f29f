#!/usr/bin/env bash
# What `make run` does once everything is built: starts glmd with the bundled
# model on a socket of its own, asks it four questions, and stays in the
# foreground until Ctrl-C. RUN_ONCE=1 ends after the questions; MQTT=1 also
# starts a mosquitto on loopback and asks one of them through it.
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
glmd= broker=

finish() {
  status=$?
  # Once: a second signal would leave what is not ended yet.
  trap - EXIT
  trap '' INT TERM
  if [[ -n $glmd ]] && kill -TERM "$glmd" 2>/dev/null; then
    wait "$glmd" || status=$?
    echo "glmd has ended."
  fi
  if [[ -n $broker ]]; then kill "$broker" 2>/dev/null || true; fi
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

mqtt=()
if [[ -n ${MQTT:-} ]]; then
  PATH=$PATH:/usr/sbin
  if ! command -v mosquitto >/dev/null || ! command -v mosquitto_rr >/dev/null; then
    echo "There is no mosquitto, or no mosquitto_rr: try \`make mosquitto\` as root." >&2
    exit 1
  fi
  # The usual port, unless somebody else's broker is there.
  port=1883
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  # What waits for a node that is away has no bound, and nothing is kept once it ends.
  printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous true" "max_queued_messages 0" \
    "set_tcp_nodelay true" "persistence false" "log_dest stderr" >"$folder/mosquitto.conf"
  setsid mosquitto -c "$folder/mosquitto.conf" >/dev/null 2>"$folder/mosquitto.log" &
  broker=$!
  export GLMD_MQTT__BROKER=mqtt://127.0.0.1:$port GLMD_MQTT__NODE=kitchen GLMD_MQTT__JOURNAL=$folder/journal
  mqtt=(mosquitto_rr -V 5 -p "$port" -q 1 -W 60 -t glmd/kitchen/request/infill -e glmd/clients/me)
fi

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

if [[ -n $broker ]]; then
  question='{"text": "Failed to [MASK] to the server."}'
  # The broker keeps what it says of itself: who subscribes now finds it.
  until [[ $(mosquitto_sub -p "$port" -W 5 -C 1 -t glmd/kitchen/state 2>/dev/null) == online ]]; do
    kill -0 "$broker" 2>/dev/null || { cat "$folder/mosquitto.log" >&2; exit 1; }
    sleep 0.1
  done
  printf "\n$ %s -m '%s'\n" "${mqtt[*]}" "$question"
  "${mqtt[@]}" -m "$question"
fi

[[ -z ${RUN_ONCE:-} ]] || exit 0
cat <<END

glmd answers on $socket. In another terminal, type

  ${ask[*]} infill "Please [MASK] the lights in the garage."
  ${ask[*]} top
  curl --unix-socket $socket http://glmd/v1/status
$(if [[ -n $broker ]]; then echo "  mosquitto_sub -p $port -v -t 'glmd/#'"; else
  echo; echo "\`make run MQTT=1\` starts a broker and asks over MQTT, too."; fi)

Ctrl-C ends it.
END
wait "$glmd"
