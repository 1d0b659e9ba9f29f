#!/usr/bin/env bash
# glmd in a control group with a hard memory limit and on one processor: does it
# still answer, and what does it take? The files of the model are read anew, so
# that what the page cache holds of them is the group's.
#
#   tests/small_box.sh BIN MODEL MIB
#
# It ends with an error when glmd is killed or does not answer, and says so
# where no control group can be made. ORT_DYLIB_PATH and GLMD_* reach glmd.
set -euo pipefail
bin=$1 model=$2 mib=$3
name=glmd-small-box.$$
folder=$(mktemp -d /tmp/glmd.XXXXXX)
group= glmd=

finish() {
    status=$?
    trap - EXIT
    if [[ -n $glmd ]]; then kill -TERM "$glmd" 2>/dev/null && { wait "$glmd" || true; }; fi
    if ((status != 0)) && [[ -s $folder/log ]]; then cat "$folder/log" >&2; fi
    # The last process is taken out a moment after it was waited for.
    for _ in {1..50}; do
        if [[ -z $group ]] || rmdir "$group" 2>/dev/null; then break; fi
        sleep 0.1
    done
    rm -rf "$folder"
    exit "$status"
}
trap finish EXIT

# Below the group of this process; version 1 where it has the memory.
own() { sed -n "s/^[0-9]*:$1:\(.*\)/\1/p" /proc/self/cgroup | head -n 1; }
first=/sys/fs/cgroup/memory$(own '[^:]*\bmemory\b[^:]*')
if [[ -w $first/memory.limit_in_bytes || -w ${first%/*}/memory ]] && mkdir "$first/$name" 2>/dev/null; then
    group=$first/$name
    limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes kills=memory.oom_control
else
    second=/sys/fs/cgroup$(own '')
    # A group with processes gives nothing to groups below it, but the one above may.
    for parent in "$second" "${second%/*}"; do
        if mkdir "$parent/$name" 2>/dev/null; then
            group=$parent/$name
            if [[ -e $group/memory.max ]]; then break; fi
            rmdir "$group"
            group=
        fi
    done
    limit=memory.max peak=memory.peak kills=memory.events
fi
if [[ -z $group ]] || ! echo $((mib << 20)) >"$group/$limit"; then
    echo "No control group can be made here: the small box is not tested."
    exit 0
fi
if [[ -e $group/memory.swap.max ]]; then echo 0 >"$group/memory.swap.max"; fi

# A file that somebody else maps stays where it is.
for file in "$model"/*; do
    if [[ -f $file ]]; then dd if="$file" iflag=nocache count=0 status=none; fi
done

ask=("$bin/glmctl" --socket "$folder/glmd.sock" --output json)
processor=$(taskset -cp $$ | sed 's/.*: \([0-9]*\).*/\1/')
started=$(date +%s%N)
# The shell moves itself, so that nothing of glmd is counted elsewhere.
bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$group" \
    taskset -c "$processor" "$bin/glmd" --model "$model" --socket "$folder/glmd.sock" 2>"$folder/log" &
glmd=$!
ready=
# Two minutes: emulated and unoptimised programs are slow.
for _ in $(seq 1200); do
    if "${ask[@]}" status 2>/dev/null | grep -q '"phase": *"ready"'; then
        ready=$(date +%s%N)
        break
    fi
    kill -0 "$glmd" 2>/dev/null || break
    sleep 0.1
done
if [[ -z $ready ]]; then
    echo "FAILED: glmd does not start with $mib MiB."
    exit 1
fi
field() { grep -o "\"$1\": *[0-9.]*" | head -n 1 | grep -o '[0-9.]*$'; }
tokens=0 ms=0
prompts=("Failed to [MASK] to the server." "Enter the IP [MASK] of your bridge." "Please [MASK] the lights in the garage."
    "The device is [MASK] and cannot be reached." "Open the [MASK] to change the settings.")
operation=(infill)
if ! "${ask[@]}" status | tr -d ' \n' | grep -q '"operations":[^]]*"infill"'; then
    operation=(generate --max-tokens 16)
    prompts=("${prompts[@]//\[MASK\]/}")
fi
for prompt in "${prompts[@]}"; do
    answer=$("${ask[@]}" "${operation[@]}" "$prompt")
    tokens=$((tokens + $(field completion_tokens <<<"$answer")))
    took=$(field total_ms <<<"$answer")
    ms=$((ms + ${took%.*}))
done
killed=$(sed -n 's/^oom_kill //p' "$group/$kills")
rss() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$glmd/status"; }
backend=$("${ask[@]}" status | sed -n 's/.*"backend": *"\([^"]*\)".*/\1/p' | head -n 1)
echo "glmd with ${model##*/} on $backend, 1 processor, limit $mib MiB: ready after $(((ready - started) / 1000000)) ms," \
    "resident $(($(rss VmRSS) >> 10)) MiB (peak $(($(rss VmHWM) >> 10)), anonymous $(($(rss RssAnon) >> 10)))," \
    "group peak $(($(cat "$group/$peak" 2>/dev/null || echo 0) >> 20)) MiB," \
    "${#prompts[@]} answers of $tokens tokens in $ms ms, $(awk "BEGIN { printf \"%.1f\", $tokens * 1000 / ($ms ? $ms : 1) }") tokens/s, kills: ${killed:-0}"
[[ ${killed:-0} == 0 ]]
