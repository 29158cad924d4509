# Two nodes on one bridge, then a command for each argument, all at once:  nodes.sh FOLDER COMMAND...
# Run as the first process of new network, mount and process namespaces, with which the nodes end.
set -eu
here=$(dirname "$0") folder=$1
shift
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
nodes=
for i in 1 2; do
  unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc bash "$here/node.sh" node$i "$folder" $PRIVATE &
  until [ -e "$folder/node$i/up" ]; do sleep 0.1; done
  ip link add v$i master br0 type veth peer name eth0 netns $!
  ip link set v$i up
  nsenter --target $! --net sh -c "ip link set lo up; ip address add 172.31.100.$i/16 dev eth0; ip link set eth0 up"
  nodes=$nodes,node$i=$(cat /proc/$!/task/$!/children | tr -d ' ')
done
export STAND_IN_NODES=${nodes#,}
jobs=
for command in "$@"; do
  bash -c "$command" &
  jobs="$jobs $!"
done
for job in $jobs; do wait "$job" || true; done
