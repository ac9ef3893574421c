package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// upstream is an OpenAI-compatible server that costs next to nothing. For each request that it lets wait it provides a
// channel that reports when the connection closes.
type upstream struct {
	waiting chan (chan time.Time)
}

func newUpstream() *upstream {
	return &upstream{waiting: make(chan (chan time.Time), 4096)}
}

func (up *upstream) serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go up.converse(connection)
	}
}

func (up *upstream) converse(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 16<<10)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		if request.Method == http.MethodGet {
			err = aside(connection, request.URL.Path)
		} else {
			err = up.complete(connection, reader, body)
		}
		if err != nil || request.Close {
			return
		}
	}
}

// complete responds to one request as the model's script says.
func (up *upstream) complete(connection net.Conn, reader *bufio.Reader, body []byte) error {
	var request struct {
		Model  string
		Stream bool
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return err
	}
	script := scriptFor(request.Model)
	if script.silent {
		return up.wait(reader)
	}
	if !request.Stream {
		_, err := connection.Write(unaryBody)
		return err
	}
	if _, err := io.WriteString(connection, streamHead); err != nil {
		return err
	}
	due := time.Now()
	for _, event := range script.events {
		if script.pace > 0 {
			time.Sleep(time.Until(due))
			due = due.Add(script.pace)
		}
		if _, err := connection.Write(event); err != nil {
			return err
		}
		if script.hold {
			return up.wait(reader)
		}
	}
	if bytes.Contains(body, []byte(`"include_usage":true`)) || bytes.Contains(body, []byte(`"include_usage": true`)) {
		if _, err := connection.Write(script.usage); err != nil {
			return err
		}
	}
	_, err := connection.Write(streamEnd)
	return err
}

// wait sends nothing more until the other side closes the connection.
func (up *upstream) wait(reader *bufio.Reader) error {
	gone := make(chan time.Time, 1)
	select {
	case up.waiting <- gone:
	default: // no receiver
	}
	_, err := reader.Peek(1)
	gone <- time.Now()
	if err == nil {
		err = io.ErrUnexpectedEOF // a pipelined request would never get a response
	}
	return err
}

// forget drops the requests without a receiver.
func (up *upstream) forget() {
	for len(up.waiting) > 0 {
		<-up.waiting
	}
}

// aside responds to the requests of routers about their workers.
func aside(connection net.Conn, path string) error {
	body := `{}`
	if path == "/v1/models" {
		body = `{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}`
	}
	_, err := fmt.Fprintf(connection, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	return err
}
