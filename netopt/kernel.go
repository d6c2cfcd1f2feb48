package netopt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Kernel reads what the kernel knows of ports and counters of one network
// namespace. It keeps the descriptors that it needs open: a process that has run
// out of them can still be told what that does to its queues. Its methods may be
// called from any goroutine until Close is.
type Kernel struct {
	diag     *diag
	counters *os.File

	mu   sync.Mutex
	text []byte // of counters
}

// countersFile is the calling thread's, whatever namespace it is in.
const countersFile = "/proc/thread-self/net/netstat"

// OpenKernel opens it for the network namespace of the calling thread. It needs no
// privilege.
func OpenKernel() (*Kernel, error) {
	d, err := openDiag()
	if err != nil {
		return nil, fmt.Errorf("kernel's connections: %w", err)
	}
	f, err := os.Open(countersFile)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kernel counters: %w", err), d.close())
	}
	return &Kernel{diag: d, counters: f}, nil
}

// Close gives the descriptors back.
func (k *Kernel) Close() error {
	return errors.Join(k.diag.close(), k.counters.Close())
}

// States reads how many connections of a listener are in which state, by sock_diag(7)
// with its port as a filter in the kernel. Those of another listener on the port, at
// another address, are not among them. Only the listener's own family is asked: one
// of both has its IPv4 connections under IPv6.
func (k *Kernel) States(listener *net.TCPAddr) (PortStates, error) {
	return k.states(listener, statesOfPort)
}

// Waiting reads the states alone in which connections wait for something, SYN_RECV
// and CLOSE_WAIT. It costs a tenth of States where many connections are established:
// the kernel passes those by.
func (k *Kernel) Waiting(listener *net.TCPAddr) (PortStates, error) {
	return k.states(listener, statesWaiting)
}

func (k *Kernel) states(listener *net.TCPAddr, states uint32) (PortStates, error) {
	var p PortStates
	if err := k.diag.dump(listener, states, &p); err != nil {
		return PortStates{}, fmt.Errorf("connections of %s: %w", listener, err)
	}
	return p, nil
}

// Counters reads the counters of the namespace (/proc/net/netstat).
func (k *Kernel) Counters() (c Counters, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.text, err = readWhole(k.counters, k.text); err != nil {
		return c, fmt.Errorf("kernel counters: %w", err)
	}
	want := map[string]*uint64{
		"ListenOverflows": &c.ListenOverflows, "ListenDrops": &c.ListenDrops,
		"TCPReqQFullDoCookies": &c.TCPReqQFullDoCookies, "TCPReqQFullDrop": &c.TCPReqQFullDrop,
		"SyncookiesSent": &c.SyncookiesSent, "SyncookiesRecv": &c.SyncookiesRecv, "SyncookiesFailed": &c.SyncookiesFailed,
	}
	// A line of names, then a line of values.
	var names []string
	for line := range strings.Lines(string(k.text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := 1; i < len(f) && i < len(names); i++ {
			if p := want[names[i]]; p != nil {
				if *p, err = strconv.ParseUint(f[i], 10, 64); err != nil {
					return c, fmt.Errorf("kernel counters: %s %s: %w", countersFile, names[i], err)
				}
			}
		}
		return c, nil
	}
	return c, fmt.Errorf("kernel counters: no TcpExt in %s", countersFile)
}

// readWhole reads a file of /proc from its beginning into b: at offset 0 the
// kernel makes it anew.
func readWhole(f *os.File, b []byte) ([]byte, error) {
	b = b[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, 8<<10)...)[:len(b)]
		}
		n, err := f.ReadAt(b[len(b):cap(b)], int64(len(b)))
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}
