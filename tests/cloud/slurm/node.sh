# The first process of a Slurm node:  node.sh NAME FOLDER PRIVATE...
# It has its own network, processes, shared memory and PRIVATE folders; all nodes share the rest of the file system.
set -e
mount --make-rprivate /
hostname "$1"
mkdir -p "$2/$1"
printf '127.0.0.1 localhost\n172.31.100.1 node1\n172.31.100.2 node2\n' > "$2/$1/hosts"
mount --bind "$2/$1/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
for private in "${@:3}"; do
  mkdir -p "$private"
  mount -t tmpfs private "$private"
done
touch "$2/$1/up"
sleep infinity &
wait
