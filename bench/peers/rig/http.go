package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// httpClient calls over HTTP/1.1: one connection per concurrent call, reused by the next call.
type httpClient struct {
	peer  *Peer
	lock  sync.Mutex // guards the tally and the idle connections
	tally *tally
	idle  []*httpConnection
}

type httpConnection struct {
	net.Conn
	reader *bufio.Reader
}

func newHTTP(peer *Peer, tally *tally) *httpClient { return &httpClient{peer: peer, tally: tally} }

func (c *httpClient) close() {
	c.lock.Lock()
	defer c.lock.Unlock()
	for _, each := range c.idle {
		each.Close()
	}
}

func (c *httpClient) start(command *Command, hooks hooks) (abort func()) {
	call := newCall(command, hooks)
	connection, err := c.connection()
	if err != nil {
		go c.end(call, nil, err)
		return func() {}
	}
	go func() { c.end(call, connection, c.exchange(call, command, connection)) }()
	return func() { connection.Close() }
}

func (c *httpClient) connection() (*httpConnection, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if last := len(c.idle) - 1; last >= 0 {
		connection := c.idle[last]
		c.idle = c.idle[:last]
		return connection, nil
	}
	made, err := net.Dial("tcp", c.peer.Address)
	if err != nil {
		return nil, err
	}
	return &httpConnection{made, bufio.NewReaderSize(made, 16<<10)}, nil
}

func (c *httpClient) end(call *call, connection *httpConnection, trouble error) {
	c.lock.Lock()
	if connection != nil && trouble == nil {
		c.idle = append(c.idle, connection)
	} else if connection != nil {
		connection.Close()
	}
	c.tally.add(call, trouble)
	c.lock.Unlock()
	call.over()
}

func (c *httpClient) exchange(call *call, command *Command, connection *httpConnection) error {
	body := requestJSON(command.Model, !command.Unary)
	head := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n",
		c.peer.Path, c.peer.Address, len(body))
	for name, value := range c.peer.Headers {
		head = fmt.Appendf(head, "%s: %s\r\n", name, value)
	}
	connection.SetDeadline(time.Now().Add(deadline))
	if _, err := connection.Write(append(append(head, "\r\n"...), body...)); err != nil {
		return err
	}
	response, err := http.ReadResponse(connection.reader, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP status %d", response.StatusCode)
	}
	if call.unary {
		answer, err := io.ReadAll(response.Body)
		call.message()
		readJSON(call, answer)
		return err
	}
	return readEvents(call, response.Body)
}

func readEvents(call *call, body io.Reader) error {
	lines, done := bufio.NewReaderSize(body, 16<<10), false
	for {
		line, err := lines.ReadSlice('\n')
		if err == io.EOF && done {
			return nil
		}
		if err != nil {
			return errors.Join(errors.New("no [DONE]"), err)
		}
		payload, isData := bytes.CutPrefix(line, []byte("data:"))
		if !isData {
			continue
		}
		if bytes.Contains(payload, []byte("[DONE]")) {
			done = true
			continue
		}
		call.message()
		readJSON(call, payload)
	}
}

// readJSON finds the text and the reason by their keys, which occur only once in what the rig sends.
func readJSON(call *call, data []byte) {
	if text, found := stringAfter(data, `"content":`); found {
		call.text = append(call.text, text...)
	}
	if reason, found := stringAfter(data, `"finish_reason":`); found {
		call.finished = string(reason) == "stop"
	}
}

func stringAfter(data []byte, key string) ([]byte, bool) {
	at := bytes.Index(data, []byte(key))
	if at < 0 {
		return nil, false
	}
	value, quoted := bytes.CutPrefix(bytes.TrimLeft(data[at+len(key):], " "), []byte(`"`))
	if !quoted {
		return nil, false
	}
	end := bytes.IndexByte(value, '"')
	return value[:max(end, 0)], true
}
