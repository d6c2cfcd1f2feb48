package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/status"
)

// TestStreamSlowClients: clients that ask for the stream and do not read it are
// dropped; weir takes messages and serves the others meanwhile, and keeps nothing
// for those.
func TestStreamSlowClients(t *testing.T) {
	w := start(t, options{})
	for i := range 20 { // they make frames large, which fills the kernel's buffers soon
		connectFrom(t, w.addr, fmt.Sprintf("127.0.1.%d", i+1)).Close()
	}
	waitFor(t, patience, func() error {
		if s := w.snapshot(); len(s.Senders) != 20 {
			return fmt.Errorf("%d senders", len(s.Senders))
		}
		return nil
	})
	good, frames := openStream(t, w.status)
	defer good.Close()
	frames(2)
	before := w.rss()
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var opErr error
		err := c.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) })
		return errors.Join(err, opErr)
	}}
	const slow = 31 // with the good one as many as weir streams to
	for range slow {
		c, err := small.Dial("tcp", w.status)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET /api/stream HTTP/1.1\r\nHost: weir\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		const ok = "HTTP/1.1 200"
		head := make([]byte, len(ok))
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, head); err != nil || string(head) != ok {
			t.Fatalf("%q, %v", head, err)
		}
	}
	ask := func() int {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.status+"/api/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if code := ask(); code != http.StatusServiceUnavailable {
		t.Errorf("one client more is answered %d", code)
	}
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	n := 0
	waitFor(t, patience, func() error { // they block, and are given up
		frames(1)
		if err := c.send("beside", fmt.Sprint("chunk ", n), n, n+1); err != nil {
			t.Fatal(err)
		}
		n++
		if code := ask(); code != http.StatusOK {
			return fmt.Errorf("no place is free after %d frames: %d", n, code)
		}
		return nil
	})
	frames(1)
	grown := w.rss() - before
	t.Logf("%d frames until a place was free, %d KiB more resident", n, grown>>10)
	if grown > 16<<20 {
		t.Errorf("%d bytes more are resident", grown)
	}
}

// openStream opens the stream; frames waits for that many more of it.
func openStream(t *testing.T, addr string) (stream io.Closer, frames func(n int)) {
	t.Helper()
	r, err := http.Get("http://" + addr + "/api/stream")
	if err != nil {
		t.Fatal(err)
	}
	b := bufio.NewReader(r.Body)
	return r.Body, func(n int) {
		t.Helper()
		for n > 0 {
			e, err := status.ReadEvent(b)
			if err != nil {
				t.Fatal(err)
			}
			if e.Name == "frame" {
				n--
			}
		}
	}
}

// TestStatusSlowRequests: who connects to the status endpoint and sends nothing, or a
// byte now and then, is dropped, and holds up nobody.
func TestStatusSlowRequests(t *testing.T) {
	for _, secure := range []bool{false, true} {
		o := options{}
		client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		url := "http://"
		if secure {
			o.monitor, url = "<transport tls>\ninsecure true\n</transport>\n", "https://"
		}
		w := launch(t, o)
		url += w.status + "/readyz"
		answered := func() error {
			r, err := client.Get(url)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if r.StatusCode != http.StatusOK {
				return errors.New(r.Status)
			}
			return nil
		}
		waitFor(t, patience, answered)
		var ended sync.WaitGroup
		for i := range 20 {
			c, err := net.Dial("tcp", w.status)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			drips := i%2 == 0
			ended.Go(func() {
				stop := make(chan struct{})
				var dripping sync.WaitGroup
				defer dripping.Wait()
				defer close(stop)
				if drips {
					dripping.Go(func() { drip(c, "GET /metrics HTTP/1.1\r\nHost: weir\r\nX: "+fmt.Sprintf("%0100d", 0), stop) })
				}
				if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Error(err)
				}
				// However it ends, it must end; an error's text may come first.
				var timeout net.Error
				if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("TLS %v, dripping %v: still open after %v", secure, drips, patience)
				}
			})
		}
		if err := answered(); err != nil {
			t.Errorf("beside slow requests: %v", err)
		}
		ended.Wait()
		if err := answered(); err != nil {
			t.Errorf("after slow requests: %v", err)
		}
	}
}

// drip sends text a byte at a time until the connection ends or stop is closed.
func drip(c net.Conn, text string, stop <-chan struct{}) {
	for i := range len(text) {
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(300 * time.Millisecond):
		}
	}
}
