package netopt_test

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"weir/internal/testns"
	"weir/netopt"
)

// TestListenSockets: every listener of the namespace is there with its own
// backlog, depth and drops, those of other owners too.
func TestListenSockets(t *testing.T) {
	ns := testns.New(t, 128)
	err := ns.Do(func() error {
		quiet := listen(t, "tcp", "127.0.0.1:0", netopt.Config{Backlog: 7})
		both := listen(t, "tcp", "[::]:0", netopt.Config{Backlog: 9})
		six := listen(t, "tcp6", "[::]:0", netopt.Config{Backlog: 11})
		full := listen(t, "tcp", "127.0.0.1:0", netopt.Config{Backlog: 1})
		for range 2 { // backlog + 1 are held
			c, err := net.Dial("tcp", full.Addr().String())
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
		}
		over := net.Dialer{Timeout: 200e6} // one SYN, dropped
		if c, err := over.Dial("tcp", full.Addr().String()); err == nil {
			c.Close()
			return fmt.Errorf("a third connection at a backlog of 1")
		}
		all, err := netopt.ListenSockets()
		if err != nil {
			return err
		}
		if len(all) != 4 {
			t.Errorf("%d sockets, want 4: %+v", len(all), all)
		}
		for _, want := range []struct {
			l              *netopt.Listener
			depth, backlog int
			dropped        bool
		}{{quiet, 0, 7, false}, {both, 0, 9, false}, {six, 0, 11, false}, {full, 2, 1, true}} {
			addr := want.l.Addr().(*net.TCPAddr).AddrPort()
			i := slices.IndexFunc(all, func(s netopt.ListenSocket) bool { return s.Addr == addr })
			if i < 0 {
				t.Errorf("no %v in %+v", addr, all)
				continue
			}
			if s := all[i]; s.Depth != want.depth || s.Backlog != want.backlog || s.Drops > 0 != want.dropped || s.Inode == 0 || s.V6Only != (want.l == six) {
				t.Errorf("%+v, want %+v", s, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
