package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a tab of Debian's chromium; whatever it complains of, and whatever
// it asks another host for, fails the test.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	requests   int
	complaints []string
	expectLoss bool // weir was stopped: its requests fail
}

func newBrowser(t *testing.T, host string) *browser {
	t.Helper()
	data, err := os.MkdirTemp("", "weir-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // its helpers may outlive it for a moment, and write there
		waitFor(t, patience, func() error { return os.RemoveAll(data) })
	})
	var options []chromedp.ExecAllocatorOption
	options = append(options, chromedp.DefaultExecAllocatorOptions[:]...)
	options = append(options, chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(data),
		chromedp.WSURLReadTimeout(patience)) // its first start on a machine reads 300 MB
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.complain("exception: %s", ev.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			b.complain("console.%s: %+v", ev.Type, ev.Args)
		case *log.EventEntryAdded: // violations of the policy among them
			b.complain("log: %s %s", ev.Entry.Text, ev.Entry.URL)
		case *network.EventRequestWillBeSent:
			b.mu.Lock()
			b.requests++
			b.mu.Unlock()
			if !strings.HasPrefix(ev.Request.URL, "http://"+host+"/") && !strings.HasPrefix(ev.Request.URL, "data:") {
				b.complain("request to another host: %s", ev.Request.URL)
			}
		}
	})
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.complaints {
			t.Error(c)
		}
	})
	return b
}

func (b *browser) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if text := fmt.Sprintf(format, args...); !b.expectLoss || !strings.Contains(text, "net::ERR_") {
		b.complaints = append(b.complaints, text)
	}
}

// wouldComplain makes the page do what it must not, and requires that the
// complaint was heard.
func (b *browser) wouldComplain() {
	b.t.Helper()
	b.mu.Lock()
	before, requests := len(b.complaints), b.requests
	b.mu.Unlock()
	if requests < 12 {
		b.t.Errorf("only %d requests of the page were seen", requests)
	}
	b.text(`document.body.insertAdjacentHTML("beforeend", '<img id="foreign" alt="" src="http://127.0.0.1:1/x.png" style="color: red">'), "done"`)
	waitFor(b.t, patience, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if text := strings.Join(b.complaints[before:], "\n"); !strings.Contains(text, "img-src") || !strings.Contains(text, "style-src") {
			return fmt.Errorf("no complaint of a foreign image and an inline style: %q", text)
		}
		return nil
	})
	b.text(`document.getElementById("foreign").remove(), "done"`) // answered after all complaints of it
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints = b.complaints[:before]
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// text evaluates an expression that gives text.
func (b *browser) text(expression string) string {
	b.t.Helper()
	var s string
	b.do(chromedp.Evaluate(expression, &s))
	return s
}

// until waits for an expression to be true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	var ok bool
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = chromedp.Run(b.ctx, chromedp.Evaluate(expression, &ok)); err == nil && ok {
			return
		}
	}
	b.t.Fatalf("the page does not show %s (%v); it shows:\n%s", what, err, b.text("document.body.innerText"))
}

// tankIs is an expression about the figures that a tank says to screen readers.
func tankIs(queue, pattern string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("[role=meter]")].some((m) => m.getAttribute("aria-label").startsWith(%q) && /%s/.test(m.getAttribute("aria-valuetext")))`, queue+" ", pattern)
}

// audit lists what is wrong for narrow screens and for screen readers.
const audit = `(() => {
  const wrong = [];
  const name = (e) => (e.getAttribute("aria-label") || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent || e.textContent).trim();
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("overflows: " + document.documentElement.scrollWidth + " of " + innerWidth);
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  if (document.querySelectorAll("main").length !== 1 || document.querySelectorAll("header").length !== 1) wrong.push("landmarks");
  if (!document.documentElement.lang) wrong.push("no language");
  for (const e of document.querySelectorAll("a, button, [tabindex], [role=meter], [role=img], [role=region], section")) if (!name(e)) wrong.push("no name: " + e.outerHTML.slice(0, 200));
  for (const t of document.querySelectorAll("table")) {
    for (const th of t.querySelectorAll("thead th")) if (th.scope !== "col" || !th.textContent.trim()) wrong.push("column without header");
    for (const tr of t.tBodies[0].rows) {
      if (tr.cells.length !== t.tHead.rows[0].cells.length) wrong.push("row of another width");
      if (tr.cells[0].scope !== "row") wrong.push("row without header");
    }
  }
  for (const m of document.querySelectorAll("[role=meter]")) {
    const [min, now, max] = ["min", "now", "max"].map((k) => Number(m.getAttribute("aria-value" + k)));
    if (!(min <= now && now <= max)) wrong.push("meter: " + [min, now, max]);
  }
  const size = (t) => parseFloat(getComputedStyle(t).fontSize);
  for (const t of document.querySelectorAll("p, td, th, dt, dd, span, h2")) if (size(t) < 11.5) wrong.push("small print: " + t.outerHTML.slice(0, 120));
  return wrong.join("\n");
})()`

// contrast is the contrast of the page's text with its paper, by WCAG 2.
const contrast = `(() => {
  const luminance = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const of = (q) => { const l = luminance(getComputedStyle(document.querySelector(q)).color); return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05); };
  return ["body", "header p", ".key", ".tank .what", ".chart .title"].filter((q) => of(q) < 4.5).map((q) => q + " " + of(q).toFixed(1)).join("\n");
})()`

// listen keeps all that is announced to screen readers: one text follows another.
const listen = `addEventListener("DOMContentLoaded", () => {
  const e = document.getElementById("announce");
  window.announced = [];
  new MutationObserver(() => announced.push(e.textContent)).observe(e, { childList: true, characterData: true, subtree: true });
})`

// TestPage watches weir in a browser while a burst overflows its accept queue,
// whose backlog was not granted, and while weir goes away and comes back.
func TestPage(t *testing.T) {
	somaxconn, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	o := options{dir: t.TempDir(), source: "backlog 1000000\non_backlog_mismatch warn"}
	w := start(t, o)
	b := newBrowser(t, w.status)
	b.do(network.Enable(), chromedp.EmulateViewport(1440, 900), chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := page.AddScriptToEvaluateOnNewDocument(listen).Do(ctx)
		return err
	}), chromedp.Navigate("http://"+w.status+"/"))
	b.until("a live connection", `document.getElementById("connection").textContent === "live"`)
	granted := strings.TrimSpace(string(somaxconn))
	b.until("the mismatch", fmt.Sprintf(`((n) => n.includes("1000000") && n.includes(%q) && n.includes("sysctl -w net.core.somaxconn=1000000"))(document.getElementById("notices").innerText)`, granted))
	b.until("that to screen readers", `announced.some((text) => text.includes("Backlog not granted"))`)

	// A burst while weir does not accept: weir counts it when it goes on.
	const burst = 300
	w.halt()
	var conns []net.Conn
	for range burst {
		c, err := net.DialTimeout("tcp", w.addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	w.signal(syscall.SIGCONT)
	b.until("the burst in the accept queue", tankIs("accept", `peak (29\d|3\d\d)`))
	b.until("the connections", tankIs("connections", `^30\d of`))
	for _, c := range conns {
		c.Close()
	}
	b.until("that they have gone", tankIs("connections", `^[01] of`))

	// What senders send is text, whatever it is.
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for i := range 20 {
		if err := c.send(`<img src=x onerror="console.error(1)">`, fmt.Sprint("chunk", i), 0, 50); err != nil {
			t.Fatal(err)
		}
	}
	b.until("the events", `document.getElementById("totals").innerText.includes("1,000 events in 20 messages")`)
	b.until("the balance", `[...document.querySelectorAll("#balance-table tbody tr")].some((r) => r.innerText.includes("1,000") && r.innerText.includes("even"))`)
	b.until("the buffer", `((r) => r.cells[0].textContent === "out" && /[1-9]/.test(r.cells[3].textContent) && /fdatasync/.test(r.innerText) && /of .* [GTM]iB$/.test(r.lastElementChild.textContent))(document.querySelector("#buffer-table tbody tr"))`)
	b.until("the sender", `[...document.querySelectorAll("#sender-table tbody tr")].some((r) => r.cells[0].textContent === "127.0.0.1" && /\b1,0\d\d\b/.test(r.innerText))`)
	b.do(chromedp.Click(`//table[@id="sender-table"]//button[text()="Bytes"]`))
	if order := b.text(`[...document.querySelectorAll("#sender-table th[aria-sort]")].map((th) => th.textContent + " " + th.getAttribute("aria-sort")).join()`); order != "Bytes descending" {
		t.Errorf("senders are sorted by %s", order)
	}
	b.until("six charts", `document.querySelectorAll("#charts canvas").length === 6`)
	sent := 0
	waitFor(t, patience, func() error { // a latency is of the last second
		sent++
		if err := c.send("latency", fmt.Sprint("more", sent), 0, 1); err != nil {
			return err
		}
		if text := b.text(`document.getElementById("charts").innerText`); !latencies.MatchString(text) {
			return fmt.Errorf("no latencies: %s", text)
		}
		return nil
	})

	for _, width := range []int64{360, 768, 1440, 2560} {
		for _, scheme := range []string{"light", "dark"} {
			b.do(chromedp.EmulateViewport(width, 900), emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
			waitFor(t, patience, func() error { // charts follow the width a moment later
				if wrong := b.text(audit); wrong != "" {
					return fmt.Errorf("%d px, %s:\n%s", width, scheme, wrong)
				}
				if low := b.text(contrast); low != "" {
					return fmt.Errorf("%d px, %s: contrast below 4.5:\n%s", width, scheme, low)
				}
				return nil
			})
			saveScreenshot(b, fmt.Sprintf("page-%d-%s.png", width, scheme))
		}
	}

	b.wouldComplain()

	b.mu.Lock()
	b.expectLoss = true
	b.mu.Unlock()
	w.stop()
	b.until("that weir has gone", `/since \d\d:\d\d:\d\d/.test(document.getElementById("connection").textContent) && document.body.classList.contains("stale")`)
	b.until("that to screen readers", `document.getElementById("announce").textContent === "No figures from weir any more"`)
	o.addr, o.status = w.addr, w.status
	start(t, o)
	b.until("that weir is back", `document.getElementById("connection").textContent === "live" && !document.body.classList.contains("stale")`)
}

// latencies is how the page writes those of acks and commits.
var latencies = regexp.MustCompile(`(?s)ack latency.*p50 [0-9.]+ (µs|ms|s).*p99 [0-9.]+ (µs|ms|s).*commit latency.*p99 [0-9.]+ (µs|ms|s)`)

// saveScreenshot keeps a picture of the page for a person to look at, if
// WEIR_SCREENSHOTS names a directory.
func saveScreenshot(b *browser, name string) {
	b.t.Helper()
	dir := os.Getenv("WEIR_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	b.do(chromedp.FullScreenshot(&png, 100))
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
