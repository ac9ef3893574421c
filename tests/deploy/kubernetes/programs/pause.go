// Pause holds a pod's namespaces while its containers come and go. It does nothing until a stop signal.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGCHLD) // the pod's orphans may become its children, which the kernel then reaps
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
