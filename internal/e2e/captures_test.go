package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"
)

// TestCapturesAreStored sends every recorded connection that needs no handshake
// to the built binary, and compares the records in the output with what was
// recorded. (The handshake's nonce is random here; the forward package replays
// those with the recorded one.)
func TestCapturesAreStored(t *testing.T) {
	dirs, err := filepath.Glob("../../testdata/captures/*")
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, options{})
	var want []string
	for _, dir := range dirs {
		if strings.Contains(dir, "secure") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "decoded.json"))
		if err != nil {
			t.Fatal(err)
		}
		var decoded map[string]struct {
			Client []struct {
				Tag    string
				Events [][]json.RawMessage
			}
		}
		if err := json.Unmarshal(b, &decoded); err != nil {
			t.Fatal(err)
		}
		for name, d := range decoded {
			sent, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			for _, half := range [][]byte{sent[:len(sent)/2], sent[len(sent)/2:]} {
				if _, err := conn.Write(half); err != nil {
					t.Fatal(err)
				}
			}
			// Closing with acks unread would be a reset, which takes what weir has not read.
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			for _, m := range d.Client {
				for _, e := range m.Events {
					want = append(want, m.Tag+" "+canonical(t, e[1]))
				}
			}
		}
	}
	waitReceived(t, w, uint64(len(want)))
	var got []string
	for _, e := range w.delivered() {
		b, err := json.Marshal(e.record)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.tag+" "+canonical(t, b))
		if _, err := time.Parse(time.RFC3339, e.time); err != nil {
			t.Error(err)
		}
	}
	sort.Strings(got)
	sort.Strings(want)
	if len(want) < 100 {
		t.Fatalf("only %d events in the captures", len(want))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%d records, want %d; the first difference: %s", len(got), len(want), difference(got, want))
	}
	w.stop()
}

// canonical is a record as text, with its keys in order.
func canonical(t *testing.T, b []byte) string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func difference(got, want []string) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("got %s, want %s", got[i], want[i])
		}
	}
	return "one has more"
}
