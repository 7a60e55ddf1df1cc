#!/bin/sh
# First process of a guest: modules, then commands that come over the serial line.
# Request: NUMBER BASE64-OF-A-SCRIPT    Answer: NUMBER EXIT-CODE BASE64-OF-ITS-OUTPUT
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up
stty -F /dev/ttyS0 raw -echo
exec 3<>/dev/ttyS0
echo ready >&3
while read -r number script <&3; do
  echo "$script" | base64 -d >/tmp/script
  sh /tmp/script >/tmp/output 2>&1 </dev/null 3<&-
  echo "$number $? $(base64 -w0 /tmp/output)" >&3
done
