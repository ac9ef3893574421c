// The rig of the benchmark: the upstream that all servers get, and the callers that load them, in one process.
//
// It reads one command a line from standard input, as JSON, and answers each with a line of JSON. Compiled, so that
// neither the upstream nor the callers are what is measured; one process, so that both read the same clock.
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
	Model       string // selects what the upstream answers: see upstream.go
	InFlight    int    // callers at once, each with one call
	Connections int
	Seconds     float64 // begin new calls for so long; 0: each caller makes one call
	Stagger     float64 // seconds over which the callers start
	Trials      int
}

// Peer says how to call a server.
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

// deadline is when a caller gives up on a call.
const deadline = 60 * time.Second
