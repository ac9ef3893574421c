package main

import (
	"fmt"
	"slices"
	"time"
)

// call is one call as its caller sees it.
type call struct {
	script   *script
	unary    bool
	sent     time.Time
	last     time.Time // when the newest message arrived
	first    time.Duration
	messages int
	text     []byte
	finished bool // the finish reason has arrived
	gaps     []time.Duration
	partial  []byte // the part of a message that has arrived
	status   string
	hooks
}

// hooks receive the events of a call, each once: its first message and its end.
type hooks struct {
	begun func()
	over  func()
}

func newCall(command *Command, hooks hooks) *call {
	return &call{script: scriptFor(command.Model), unary: command.Unary, sent: time.Now(), hooks: hooks}
}

// message records an arrival.
func (c *call) message() {
	now := time.Now()
	if c.messages == 0 {
		c.first = now.Sub(c.sent)
		if c.begun != nil {
			c.begun()
		}
	} else if c.script.pace > 0 {
		c.gaps = append(c.gaps, now.Sub(c.last))
	}
	c.last = now
	c.messages++
}

// fault describes an error in the response; empty if there is none.
func (c *call) fault(trouble error) string {
	expected := c.script.text
	if c.unary {
		expected = unaryText
	}
	switch {
	case trouble != nil:
		return trouble.Error()
	case string(c.text) != expected:
		return fmt.Sprintf("a text of %d bytes, expected %d", len(c.text), len(expected))
	case !c.finished:
		return "no finish_reason"
	case !c.unary && c.messages > c.script.chunks+2: // the usage, and for HTTP [DONE]
		return fmt.Sprintf("%d messages for %d chunks", c.messages, c.script.chunks)
	}
	return ""
}

// tally is the sum of the calls of one load.
type tally struct {
	calls    int
	messages int
	began    time.Time
	ended    time.Time
	firsts   []time.Duration
	wholes   []time.Duration
	jitters  []time.Duration
	faults   map[string]int
}

func newTally() *tally { return &tally{began: time.Now(), faults: map[string]int{}} }

func (t *tally) add(c *call, trouble error) {
	t.ended = time.Now()
	if fault := c.fault(trouble); fault != "" {
		t.faults[fault]++
		return
	}
	t.calls++
	t.messages += c.messages
	t.firsts = append(t.firsts, c.first)
	t.wholes = append(t.wholes, t.ended.Sub(c.sent))
	for _, gap := range c.gaps {
		t.jitters = append(t.jitters, (gap - c.script.pace).Abs())
	}
}

func (t *tally) merge(other *tally) {
	t.calls += other.calls
	t.messages += other.messages
	if other.ended.After(t.ended) {
		t.ended = other.ended
	}
	t.firsts = append(t.firsts, other.firsts...)
	t.wholes = append(t.wholes, other.wholes...)
	t.jitters = append(t.jitters, other.jitters...)
	for fault, count := range other.faults {
		t.faults[fault] += count
	}
}

func (t *tally) report() map[string]any {
	return map[string]any{
		"calls":     t.calls,
		"messages":  t.messages,
		"seconds":   t.ended.Sub(t.began).Seconds(),
		"first_ms":  percentiles(t.firsts),
		"whole_ms":  percentiles(t.wholes),
		"jitter_ms": percentiles(t.jitters),
		"faults":    t.faults,
	}
}

// percentiles are the 50th and 99th, in milliseconds.
func percentiles(values []time.Duration) map[string]float64 {
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	at := func(share float64) float64 {
		return float64(values[int(share*float64(len(values)-1))]) / float64(time.Millisecond)
	}
	return map[string]float64{"p50": at(.50), "p99": at(.99)}
}
