#!/bin/sh
# What udhcpc does with a lease: applies it, and prints it.
case $1 in bound | renew) ;; *) exit 0 ;; esac
ip address flush dev "$interface"
ip address add "$ip/$mask" dev "$interface"
[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
for hop in $router; do ip route replace default via "$hop" dev "$interface"; done
{
  [ -z "$search$domain" ] || echo "search ${search:-$domain}"
  for server in $dns; do echo "nameserver $server"; done
} >/etc/resolv.conf
echo "lease $ip/$mask router=$router dns=$dns domain=$domain search=$search mtu=$mtu hostname=$hostname"
