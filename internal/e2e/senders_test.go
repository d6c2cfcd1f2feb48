package e2e

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"testing"

	"github.com/fluent/fluent-logger-golang/fluent"
)

const perSender = 200

// requireAll fails unless exactly the numbers 0 to n-1 came with the tag.
func requireAll(t *testing.T, events []event, tag string, n int) {
	t.Helper()
	var got []int
	for _, e := range events {
		if e.tag != tag {
			continue
		}
		v, ok := e.record["n"].(float64)
		if !ok {
			t.Fatalf("%s: record without n: %v", tag, e.record)
		}
		got = append(got, int(v))
	}
	sort.Ints(got)
	if len(got) != n {
		t.Fatalf("%s: %d events in the output, want %d", tag, len(got), n)
	}
	for i, v := range got {
		if i != v {
			t.Fatalf("%s: event %d missing (next is %d)", tag, i, v)
		}
	}
}

func TestGoSender(t *testing.T) {
	for _, c := range []struct {
		name        string
		ack, subsec bool
		marshalJSON bool
		tls         bool
	}{
		{name: "plain"}, {name: "ack", ack: true}, {name: "subsecond", subsec: true},
		{name: "ack and subsecond", ack: true, subsec: true}, {name: "json", marshalJSON: true},
		{name: "TLS", ack: true, tls: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, network := options{}, "tcp"
			if c.tls {
				o.source, network = "<transport tls>\n  insecure true\n</transport>", "tls"
			}
			w := start(t, o)
			host, portText, err := net.SplitHostPort(w.addr)
			if err != nil {
				t.Fatal(err)
			}
			port, err := strconv.Atoi(portText)
			if err != nil {
				t.Fatal(err)
			}
			logger, err := fluent.New(fluent.Config{
				FluentNetwork: network, TlsInsecureSkipVerify: c.tls, FluentHost: host, FluentPort: port, RequestAck: c.ack, SubSecondPrecision: c.subsec,
				MarshalAsJSON: c.marshalJSON, WriteTimeout: patience, ReadTimeout: patience, MaxRetry: 1,
			})
			if err != nil {
				t.Fatal(err)
			}
			for n := range perSender {
				if err := logger.Post("go.events", map[string]any{"n": n, "text": fmt.Sprintf("grüße %d", n), "pi": 3.14}); err != nil {
					t.Fatal(err)
				}
			}
			if err := logger.Close(); err != nil {
				t.Fatal(err)
			}
			waitReceived(t, w, perSender)
			events := w.delivered()
			requireAll(t, events, "go.events", perSender)
			if got := events[0].record["pi"]; got != 3.14 {
				t.Errorf("pi = %v", got)
			}
			if acks := w.snapshot().Traffic.Acks; c.ack && acks != perSender || !c.ack && acks != 0 {
				t.Errorf("%d acks", acks)
			}
			w.stop()
		})
	}
}

func TestPythonSender(t *testing.T) {
	for _, precision := range []string{"second", "nanosecond"} {
		t.Run(precision, func(t *testing.T) {
			w := start(t, options{})
			host, port, err := net.SplitHostPort(w.addr)
			if err != nil {
				t.Fatal(err)
			}
			run(t, "/usr/bin/python3", "testdata/python/send.py", host, port, strconv.Itoa(perSender), precision)
			waitReceived(t, w, perSender)
			events := w.delivered()
			requireAll(t, events, "py.events", perSender)
			if got := fmt.Sprint(events[0].record["nested"]); got != "map[a:[1 2.5 <nil> true]]" {
				t.Errorf("nested = %s", got)
			}
			w.stop()
		})
	}
}

func TestNodeSender(t *testing.T) {
	for _, mode := range []string{"Message", "Forward", "PackedForward", "CompressedPackedForward"} {
		t.Run(mode, func(t *testing.T) {
			w := start(t, options{})
			host, port, err := net.SplitHostPort(w.addr)
			if err != nil {
				t.Fatal(err)
			}
			run(t, "node", "testdata/node/send.js", host, port, strconv.Itoa(perSender), mode)
			events := w.delivered()
			requireAll(t, events, "node."+mode, perSender)
			if w.snapshot().Traffic.Acks == 0 {
				t.Error("no ack was sent")
			}
			w.stop()
		})
	}
}

// waitReceived waits until n events were stored: without acks a sender has
// ended before weir has read all.
func waitReceived(t *testing.T, w *weir, n uint64) {
	t.Helper()
	waitFor(t, patience, func() error {
		var got uint64
		for _, b := range w.snapshot().Balance {
			got += b.Received
		}
		if got < n {
			return fmt.Errorf("received %d of %d events", got, n)
		}
		return nil
	})
}
