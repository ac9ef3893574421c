package main

import (
	"sync"
	"time"
)

// A client holds one connection, or as many as its protocol needs for its concurrent calls.
type client interface {
	start(command *Command, hooks hooks) (abort func()) // begins a call; `abort` cancels it
	close()
}

func connect(command *Command, tally *tally) (client, error) {
	if command.Peer.Protocol == "grpc" {
		return dialGRPC(&command.Peer, tally)
	}
	return newHTTP(&command.Peer, tally), nil
}

// load makes calls from the requested number of callers; each begins its next call when the last one is done.
func load(command Command) *tally {
	total := newTally()
	var lock sync.Mutex
	var connections sync.WaitGroup
	share := command.InFlight / command.Connections
	for number := range command.Connections {
		connections.Add(1)
		go func() {
			defer connections.Done()
			mine := newTally()
			loadConnection(&command, number*share, share, mine, total.began)
			lock.Lock()
			defer lock.Unlock()
			total.merge(mine)
		}()
	}
	connections.Wait()
	return total
}

func loadConnection(command *Command, firstCaller, callers int, tally *tally, began time.Time) {
	client, err := connect(command, tally)
	if err != nil {
		tally.faults[err.Error()]++
		tally.ended = time.Now()
		return
	}
	defer client.close()
	until := began.Add(time.Duration(command.Seconds * float64(time.Second)))
	var left sync.WaitGroup
	left.Add(callers)
	var again hooks
	again.over = func() {
		if time.Now().Before(until) {
			client.start(command, again)
		} else {
			left.Done()
		}
	}
	for caller := range callers {
		if command.Stagger > 0 {
			share := float64(firstCaller+caller) / float64(command.InFlight)
			time.Sleep(time.Until(began.Add(time.Duration(share * command.Stagger * float64(time.Second)))))
		}
		client.start(command, again)
	}
	left.Wait()
}

// holder keeps streams open after their first message.
type holder struct {
	clients []client
	aborts  []func()
}

func (h holder) release() {
	for _, abort := range h.aborts {
		abort()
	}
	time.Sleep(100 * time.Millisecond) // so that the aborts are sent before the connections close
	for _, each := range h.clients {
		each.close()
	}
}

// open begins streams and leaves them open.
func open(command Command) (holder, map[string]any) {
	var held holder
	begun, over := make(chan bool, command.InFlight), make(chan bool, command.InFlight)
	hooks := hooks{begun: func() { begun <- true }, over: func() { over <- true }}
	share := command.InFlight / command.Connections
	for range command.Connections {
		client, err := connect(&command, newTally())
		if err != nil {
			return held, map[string]any{"error": err.Error()}
		}
		held.clients = append(held.clients, client)
		for range share {
			held.aborts = append(held.aborts, client.start(&command, hooks))
		}
	}
	timeout := time.After(deadline)
	for opened := range share * command.Connections {
		select {
		case <-begun:
		case <-over:
			return held, map[string]any{"error": "a stream ended early", "opened": opened}
		case <-timeout:
			return held, map[string]any{"error": "not all streams began", "opened": opened}
		}
	}
	return held, map[string]any{"opened": share * command.Connections}
}

const (
	settling = 5 * time.Millisecond // a call is at rest before it is cancelled
	patience = 2 * time.Second      // a server that has not forwarded a cancel by then never does
	misses   = 5                    // stop after so many, because more show nothing new
)

// cancels measures the delay from the caller's cancel until the upstream sees it.
func cancels(command Command, up *upstream) map[string]any {
	client, err := connect(&command, newTally())
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	defer client.close()
	script := scriptFor(command.Model)
	var delays []time.Duration
	trials := 0
	up.forget()
	for ; trials < command.Trials && trials-len(delays) < misses; trials++ {
		begun := make(chan bool, 1)
		abort := client.start(&command, hooks{begun: func() { begun <- true }, over: func() {}})
		gone, arrived := within(deadline, up.waiting)
		if !arrived {
			return map[string]any{"error": "a call did not reach the upstream"}
		}
		if script.hold {
			if _, ok := within(deadline, begun); !ok {
				return map[string]any{"error": "a first chunk did not come"}
			}
		}
		time.Sleep(settling)
		cancelled := time.Now()
		abort()
		if at, closed := within(patience, gone); closed {
			delays = append(delays, at.Sub(cancelled))
		}
	}
	return map[string]any{"trials": trials, "closed": len(delays), "delay_ms": percentiles(delays)}
}

func within[T any](limit time.Duration, channel chan T) (value T, ok bool) {
	select {
	case value = <-channel:
		return value, true
	case <-time.After(limit):
		return value, false
	}
}
