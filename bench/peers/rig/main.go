// The rig of the benchmark: the upstream of all servers, and the callers that load them, in one process.
//
// It reads one JSON command per line from standard input and writes one line of JSON for each. It is compiled so that
// neither the upstream nor the callers limit the figures, and one process so that both read the same clock.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"
)

// Command is a line of standard input.
type Command struct {
	Op          string // load, open, close, cancel
	Peer        Peer
	Unary       bool
	Model       string // selects the response of the upstream: see script.go
	InFlight    int    // callers at once, each with one call
	Connections int
	Seconds     float64 // how long callers begin new calls; 0: each caller makes one call
	Stagger     float64 // seconds over which the callers start
	Trials      int
}

// Peer is the address of a server and how to call it.
type Peer struct {
	Protocol string // grpc or http
	Address  string
	Path     string // for grpc: of the service
	Headers  map[string]string
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	upstream := newUpstream()
	go upstream.serve(listener)
	answer(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})

	var held []holder
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var command Command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			answer(map[string]string{"error": err.Error()})
			continue
		}
		switch command.Op {
		case "load":
			answer(load(command).report())
		case "open":
			holder, report := open(command)
			held = append(held, holder)
			answer(report)
		case "close":
			for _, each := range held {
				each.release()
			}
			held = nil
			answer(map[string]bool{"closed": true})
		case "cancel":
			answer(cancels(command, upstream))
		default:
			answer(map[string]string{"error": "no such op: " + command.Op})
		}
	}
}

func answer(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

// deadline is the time limit of a call.
const deadline = 60 * time.Second
