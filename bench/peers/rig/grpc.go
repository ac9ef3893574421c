package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	windowBytes = 16 << 20 // no stream here is longer, so flow control never stops one
	refillBytes = 1 << 20
)

// grpcClient is one HTTP/2 connection; the goroutine that reads it drives all its calls.
type grpcClient struct {
	peer       *Peer
	tally      *tally
	connection net.Conn
	reader     *bufio.Reader
	framer     *http2.Framer

	lock     sync.Mutex // guards the fields below, and every write
	writer   *bufio.Writer
	fields   bytes.Buffer
	encoder  *hpack.Encoder
	calls    map[uint32]*call
	next     uint32
	unfilled uint32
	broken   error
}

func dialGRPC(peer *Peer, tally *tally) (*grpcClient, error) {
	connection, err := net.Dial("tcp", peer.Address)
	if err != nil {
		return nil, err
	}
	c := &grpcClient{
		peer: peer, tally: tally, connection: connection, next: 1, calls: map[uint32]*call{},
		reader: bufio.NewReaderSize(connection, 64<<10), writer: bufio.NewWriter(connection),
	}
	c.encoder = hpack.NewEncoder(&c.fields)
	c.framer = http2.NewFramer(c.writer, c.reader)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.SetReuseFrames()
	c.writer.WriteString(http2.ClientPreface)
	c.framer.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: windowBytes},
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
	)
	c.framer.WriteWindowUpdate(0, windowBytes)
	if err := c.writer.Flush(); err != nil {
		return nil, err
	}
	go c.read()
	return c, nil
}

func (c *grpcClient) close() { c.connection.Close() }

func (c *grpcClient) start(command *Command, hooks hooks) (abort func()) {
	call := newCall(command, hooks)
	c.lock.Lock()
	if c.broken != nil {
		c.lock.Unlock()
		c.end(0, call, c.broken)
		return func() {}
	}
	id := c.next
	c.next += 2
	c.calls[id] = call
	c.fields.Reset()
	method := "CreateChatCompletionStream"
	if command.Unary {
		method = "CreateChatCompletion"
	}
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", c.peer.Path + "/" + method}, {":authority", c.peer.Address},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"grpc-timeout", fmt.Sprintf("%dS", int(deadline.Seconds()))},
	} {
		c.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	for name, value := range c.peer.Headers {
		c.encoder.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields.Bytes(), EndHeaders: true})
	c.framer.WriteData(id, true, requestMessage(command.Model))
	c.writer.Flush()
	c.lock.Unlock()
	return func() {
		c.lock.Lock()
		defer c.lock.Unlock()
		if _, open := c.calls[id]; open {
			delete(c.calls, id)
			c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
			c.writer.Flush()
		}
	}
}

// read handles frames until the connection closes, and then finishes all calls.
func (c *grpcClient) read() {
	var err error
	for err == nil {
		var frame http2.Frame
		if frame, err = c.framer.ReadFrame(); err == nil {
			err = c.handle(frame)
		}
	}
	c.lock.Lock()
	c.broken = err
	left := c.calls
	c.calls = map[uint32]*call{}
	c.lock.Unlock()
	for id, call := range left {
		c.end(id, call, err)
	}
}

func (c *grpcClient) handle(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.DataFrame:
		return c.data(frame)
	case *http2.MetaHeadersFrame:
		if frame.StreamEnded() {
			c.end(frame.StreamID, c.call(frame.StreamID), status(frame))
		}
	case *http2.RSTStreamFrame:
		c.end(frame.StreamID, c.call(frame.StreamID), fmt.Errorf("the stream was reset: %v", frame.ErrCode))
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %v", frame.ErrCode)
	case *http2.SettingsFrame:
		if !frame.IsAck() {
			return c.write(func() error { return c.framer.WriteSettingsAck() })
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			return c.write(func() error { return c.framer.WritePing(true, frame.Data) })
		}
	}
	return nil
}

func (c *grpcClient) data(frame *http2.DataFrame) error {
	c.unfilled += frame.Length
	if c.unfilled > refillBytes {
		size := c.unfilled
		c.unfilled = 0
		if err := c.write(func() error { return c.framer.WriteWindowUpdate(0, size) }); err != nil {
			return err
		}
	}
	call := c.call(frame.StreamID)
	if call == nil {
		return nil // it was cancelled
	}
	rest := frame.Data()
	if len(call.partial) > 0 {
		call.partial = append(call.partial, rest...)
		rest = call.partial
	}
	for len(rest) >= 5 {
		size := 5 + int(binary.BigEndian.Uint32(rest[1:5]))
		if len(rest) < size {
			break
		}
		call.message()
		if err := readMessage(call, rest[5:size]); err != nil {
			return err
		}
		rest = rest[size:]
	}
	call.partial = append(call.partial[:0], rest...)
	return nil
}

func (c *grpcClient) write(frame func() error) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	return errors.Join(frame(), c.writer.Flush())
}

func (c *grpcClient) call(id uint32) *call {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.calls[id]
}

func (c *grpcClient) end(id uint32, call *call, trouble error) {
	if call == nil {
		return
	}
	c.lock.Lock()
	delete(c.calls, id)
	c.tally.add(call, trouble)
	c.lock.Unlock()
	call.over()
}

func status(trailers *http2.MetaHeadersFrame) error {
	code, message := "missing", ""
	for _, field := range trailers.Fields {
		switch field.Name {
		case "grpc-status":
			code = field.Value
		case "grpc-message":
			message = field.Value
		}
	}
	if code != "0" {
		return fmt.Errorf("grpc-status %s: %s", code, message)
	}
	return nil
}
