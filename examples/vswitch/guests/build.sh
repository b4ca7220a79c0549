#!/usr/bin/env bash
# Builds a small guest for QEMU: a Debian kernel, and an initial RAM disk with busybox, ip, tc, iperf3 and flood.c.
#   examples/vswitch/guests/build.sh [FOLDER]      (default: runs/guest)
# The kernel and busybox are Debian packages: downloaded by apt-get, unpacked here, not installed. Needs gcc with a
# static libc, cpio, iproute2, and on other systems than Debian a folder that was built elsewhere.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(realpath -m "${1:-runs/guest}")
for program in apt-get dpkg-deb apt-cache gcc cpio ip tc; do
    command -v "$program" >/dev/null || { echo "build.sh needs the program $program" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder" "$work/root/"{bin,tools,dev,proc,sys,tmp,etc,lib/modules}

cd "$work"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -1)
apt-get -qq -o APT::Sandbox::User=root download "$kernel" busybox-static
for package in ./*.deb; do dpkg-deb -x "$package" packages; done

cp packages/bin/busybox root/bin/
# Programs of this machine, with the libraries that they are linked to.
for program in ip tc iperf3; do
    path=$(command -v "$program") || continue
    cp -L "$path" root/tools/
    for library in $(ldd "$path" | grep -o '/[^ ]*'); do
        mkdir -p "root$(dirname "$library")"
        cp -Lu "$library" "root$library"
    done
done
gcc -O2 -static -o root/tools/flood "$here/flood.c"
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net; do
    find packages/lib/modules -name "$module.ko" -exec cp {} root/lib/modules/ \;
    echo "$module" >>root/lib/modules/order
done
install -m 755 "$here/init" root/init
(cd root && find . | cpio --quiet -o -H newc | gzip -1) >"$folder/initrd.gz"
cp packages/boot/vmlinuz-* "$folder/vmlinuz"
cp root/tools/flood "$folder/flood"
echo "$kernel: $(du -ch "$folder/vmlinuz" "$folder/initrd.gz" | tail -1 | cut -f1) in $folder"
