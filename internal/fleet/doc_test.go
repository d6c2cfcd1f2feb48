package fleet

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDoc: the tables of docs/performance.md are what the simulation says.
func TestDoc(t *testing.T) {
	text, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	server := Server{CommitTime: 200 * time.Microsecond, DiskBytes: 500e6}
	for name, f := range map[string]Fleet{
		"TCP heartbeats": {Heartbeat: TCP, HeartbeatEvery: time.Second, FlushEvery: 5 * time.Second, FlushBytes: 64 << 10},
		"UDP heartbeats": {Heartbeat: UDP, HeartbeatEvery: time.Second, FlushEvery: 5 * time.Second, FlushBytes: 64 << 10, Keepalive: true},
		"short flushes":  {Heartbeat: None, FlushEvery: time.Second, FlushBytes: 2 << 10, Keepalive: true},
	} {
		rows, err := Grow(f, server, MeasuredCosts(), []int{1, 2, 4, 8, 16})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteCapacity(&b, rows); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), b.String()) {
			t.Errorf("docs/performance.md lacks the table of %s:\n%s", name, &b)
		}
	}
}
