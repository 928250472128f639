// Command etcd is the server as a program of its own: kubeadm asks for a newer one than Debian has, and `go install`
// refuses a main module with replace directives, which etcd's is.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
