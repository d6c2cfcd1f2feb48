// Package testns gives tests a network namespace of their own, in which they
// may change kernel limits and overflow queues without touching the host.
package testns

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with loopback up, and the thread that lives
// in it.
type Namespace struct {
	calls  chan func()
	done   chan struct{}
	strays int // addresses that Stray has used; of the thread
}

// New makes a namespace with that net.core.somaxconn; it ends with the test. A
// test that is not run as root is skipped, loudly.
func New(t *testing.T, somaxconn int) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root for a network namespace of its own; run the tests as root (CI does)")
	}
	n := &Namespace{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // and never unlock: the thread must not be used again
		ready <- enter(somaxconn)
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(n.calls)
		<-n.done
	})
	return n
}

func enter(somaxconn int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return setSomaxconn(somaxconn)
}

func setSomaxconn(n int) error {
	return os.WriteFile("/proc/sys/net/core/somaxconn", fmt.Append(nil, n), 0o644)
}

// Do runs f on the namespace's thread: sockets that f makes and processes that
// it starts belong to the namespace.
func (n *Namespace) Do(f func() error) error {
	err := make(chan error, 1)
	n.calls <- func() { err <- f() }
	return <-err
}

// SetSomaxconn changes net.core.somaxconn of the namespace.
func (n *Namespace) SetSomaxconn(v int) error {
	return n.Do(func() error { return setSomaxconn(v) })
}
