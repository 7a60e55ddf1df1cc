#!/bin/sh
# First process of a guest: modules, then commands that come over the serial line.
# Request: NUMBER BASE64-OF-A-SCRIPT    Answer: NUMBER EXIT-CODE BASE64-OF-ITS-OUTPUT
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
# There is no console, and a server that finds 0 to 2 closed would take one of them for its socket.
exec </dev/null >/dev/null 2>&1
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up
# greet=URL on the kernel's command line: have an address, fetch the page, serve what came of it.
for word in $(cat /proc/cmdline); do
  case $word in greet=*)
    ip link set eth0 up
    udhcpc -i eth0 -n -q -s /bin/lease >/dev/null 2>&1
    page=$(wget -qO- "${word#greet=}")
    echo "hello from a virtual machine, which got from ${word#greet=}: $page" >/www/index.html
    httpd -h /www
    ;;
  esac
done
stty -F /dev/ttyS0 raw -echo
exec 3<>/dev/ttyS0
echo ready >&3
while read -r number script <&3; do
  echo "$script" | base64 -d >/tmp/script
  sh /tmp/script >/tmp/output 2>&1 </dev/null 3<&-
  echo "$number $? $(base64 -w0 /tmp/output)" >&3
done
