package page

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func request(t *testing.T, url string, header http.Header) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, url, nil)
	r.Header = header
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func TestFilesAreServedSafely(t *testing.T) {
	types := map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	urls := map[string]string{"/": "text/html; charset=utf-8"}
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if want, ok := types[path.Ext(name)]; ok {
			urls["/page/"+strings.TrimPrefix(name, "assets/")] = want
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(urls) < 12 {
		t.Fatalf("only %d files", len(urls))
	}
	for url, want := range urls {
		r := request(t, url, nil)
		h := r.Header
		if r.StatusCode != http.StatusOK || h.Get("Content-Type") != want {
			t.Errorf("%s: %s, %s", url, r.Status, h.Get("Content-Type"))
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: headers %v", url, h)
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'; style-src 'self'; ") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", url, csp)
		}
		again := request(t, url, http.Header{"If-None-Match": {h.Get("ETag")}})
		if h.Get("ETag") == "" || again.StatusCode != http.StatusNotModified {
			t.Errorf("%s: ETag %q, asked again: %s", url, h.Get("ETag"), again.Status)
		}
	}
	for _, url := range []string{"/page/", "/page/none.js", "/page/../page.go"} {
		if r := request(t, url, nil); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", url, r.Status)
		}
	}
}

// TestNothingFromElsewhere reads what was written here (uPlot is as it came):
// no other host, no inline script or style, and no way from text to HTML.
func TestNothingFromElsewhere(t *testing.T) {
	forbidden := regexp.MustCompile(`https?://[^w]|//cdn|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\sstyle=|\son[a-z]+=|<style|@import|<script>`)
	entries, err := fs.ReadDir(assets, "assets")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := assets.ReadFile("assets/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if found := forbidden.Find(b); found != nil {
			t.Errorf("%s has %q", e.Name(), found)
		}
	}
}
