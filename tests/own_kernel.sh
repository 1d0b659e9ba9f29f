#!/usr/bin/env bash
# glmd on a kernel of its own with control groups of version 2, in an emulated PC: does it answer in 128 MiB, does it
# find the group that binds it, and does it use less while another program takes the group's memory?
#
#   tests/own_kernel.sh BIN MODEL
#
# It wants a Debian and root: the kernel is Debian's, and QEMU is installed where it is missing. It says so where one
# of them cannot be had. Nothing is timed: an emulated processor is a hundred times slower.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 model=$2
work=target/own-kernel
mkdir -p "$work"

has() { command -v qemu-system-x86_64 >/dev/null && command -v busybox >/dev/null; }
if ! has; then
    apt-get -qq update || true
    # Where QEMU's tools are those of backports, its machines have to be too.
    . /etc/os-release
    for release in "$VERSION_CODENAME" "$VERSION_CODENAME-backports"; do
        if has; then break; fi
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y -t "$release" --no-install-recommends \
            qemu-system-x86 busybox-static </dev/null >"$work/apt.log" 2>&1 || true
    done
fi
kernel=$(compgen -G "$work/kernel/boot/vmlinuz-*" || true)
if [[ -z $kernel ]]; then
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }')
    if [[ -n $package ]] && (cd "$work" && apt-get -qq download "$package" 2>/dev/null); then
        dpkg -x "$work/$package"_*.deb "$work/kernel"
        kernel=$(compgen -G "$work/kernel/boot/vmlinuz-*")
    fi
fi
if ! has || [[ -z $kernel ]]; then
    echo "QEMU or a kernel cannot be installed here: glmd is not tested on control groups of version 2."
    exit 0
fi

# A root of what the test needs, and the libraries of that.
root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,proc,sys,dev,tmp,tests}
for program in glmd glmctl; do strip -o "$root/bin/$program" "$bin/$program"; done
for tool in bash taskset awk dd mktemp date sed grep cat mkdir rmdir rm seq head sleep tr busybox; do
    cp -L "$(command -v "$tool")" "$root/bin/$tool"
done
for library in $(ldd "$root"/bin/* 2>/dev/null | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    mkdir -p "$root/$(dirname "$library")"
    cp -L "$library" "$root/$library"
done
cp -r "$model" "$root/model"
rm -rf "$root/model/eval"
cp tests/small_box.sh "$root/tests/"
cat >"$root/init" <<'INIT'
#!/bin/bash
export PATH=/bin HOME=/tmp LC_ALL=C
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t cgroup2 none /sys/fs/cgroup
exec </dev/null >/dev/ttyS0 2>&1
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
GLMD_MODEL__BACKEND=tract-paged bash /tests/small_box.sh /bin /model 128 && echo "PASSED small box"

# The group of glmd has no limit that matters; the one above it has, and another program is in there.
app=/sys/fs/cgroup/app
mkdir -p $app
echo +memory >$app/cgroup.subtree_control
mkdir $app/glmd $app/hog
echo 300M >$app/memory.max
(echo $BASHPID >$app/glmd/cgroup.procs && exec glmd --model /model --socket /tmp/glmd.sock 2>/tmp/log) &
ask="glmctl --socket /tmp/glmd.sock"
# until WHAT PATTERN : waits for a line of the status, two minutes of an emulated processor.
until_status() {
    for _ in $(seq 120); do
        if $ask status 2>/dev/null | grep -E "$2"; then echo "PASSED $1"; return; fi
        sleep 1
    done
    $ask status
    cat /tmp/log
}
until_status "it finds the group above its own" 'level +green .*by /sys/fs/cgroup/app\)'
grep -q 'watch="trigger"' /tmp/log && echo "PASSED pressure wakes it"
(echo $BASHPID >$app/hog/cgroup.procs && exec busybox dd if=/dev/zero of=/dev/null bs=230M count=1000000 2>/dev/null) &
hog=$!
until_status "it uses less beside another program" 'level +(yellow|orange|red|black)'
kill $hog
until_status "it comes back" 'level +green'
[[ $($ask infill "Failed to [MASK] to the server.") == "Failed to connect to the server." ]] && echo "PASSED it answers"
grep '^oom_kill 0$' $app/memory.events && echo "PASSED nobody was killed"
busybox poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"

# Ten minutes: a busy machine emulates slowly. Its timers are not checked, since they are late then.
timeout 600 qemu-system-x86_64 -accel tcg -cpu Haswell -m 1536 -smp 1 -nographic -no-reboot -kernel "$kernel" \
    -initrd "$work/initrd.gz" -append "console=ttyS0 panic=-1 quiet no_timer_check tsc=unstable" </dev/null >"$work/log" 2>&1 || true
tr -d '\r' <"$work/log" | grep -E '^(PASSED|glmd with|level)' || true
passed=$(grep -c '^PASSED' "$work/log" || true)
if [[ $passed != 7 ]]; then
    tail -n 60 "$work/log"
    echo "FAILED: $passed of 7 steps passed."
    exit 1
fi
