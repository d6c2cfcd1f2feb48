package status

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap/zaptest"
)

// ask requests a path of a server with options.
func ask(t *testing.T, o Options, path string, change func(r *http.Request)) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	s := NewServer(example, o, zaptest.NewLogger(t))
	s.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestPluginFilters(t *testing.T) {
	o := Options{OutputsOf: func(tag string) []string {
		if tag == "app.web" {
			return []string{"out"}
		}
		return nil
	}}
	for _, c := range []struct {
		query string
		want  []string // plugin ids
	}{
		{"", []string{"in", "out"}},
		{"?@type=file", []string{"out"}},
		{"?type=forward", []string{"in"}},
		{"?@type=none", nil},
		{"?@id=in", []string{"in"}},
		{"?id=out", []string{"out"}},
		{"?id=none", nil},
		{"?tag=app.web", []string{"out"}},
		{"?tag=other", nil},
		{"?tag=app.web&@id=in", []string{"out"}}, // as in_monitor_agent: tag goes first
		{"?debug=1", []string{"in", "out"}},
	} {
		code, body := ask(t, o, "/api/plugins.json"+c.query, nil)
		var got struct {
			Plugins []struct {
				ID string `json:"plugin_id"`
			} `json:"plugins"`
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK || got.Plugins == nil {
			t.Fatalf("%s: %d %v %s", c.query, code, err, body)
		}
		var ids []string
		for _, p := range got.Plugins {
			ids = append(ids, p.ID)
		}
		if !slices.Equal(ids, c.want) {
			t.Errorf("%s: %v, want %v", c.query, ids, c.want)
		}
		if strings.Contains(body, "\n  ") != strings.Contains(c.query, "debug") {
			t.Errorf("%s: indented or not: %s", c.query, body)
		}
	}
}

func TestPluginOptions(t *testing.T) {
	for _, c := range []struct {
		query         string
		o             Options
		config, retry bool
	}{
		{"", Options{}, true, true},
		{"?with_config=false", Options{}, false, true},
		{"?with_retry=no", Options{}, true, false},
		{"", Options{HideConfig: true, HideRetry: true}, false, false},
		{"?with_config=yes&with_retry=1", Options{HideConfig: true, HideRetry: true}, true, true},
	} {
		s := func() *Snapshot {
			s := example()
			s.Outputs[0].Config = map[string]string{"path": "/var/log/x"}
			return s
		}
		w := httptest.NewRecorder()
		NewServer(s, c.o, zaptest.NewLogger(t)).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/plugins.json"+c.query, nil))
		body := w.Body.String()
		if strings.Contains(body, "/var/log/x") != c.config || strings.Contains(body, `"retry":{"start":"2026-03-01 12:00:00 +0000","steps":3`) != c.retry {
			t.Errorf("%s %+v: %s", c.query, c.o, body)
		}
	}
}

func TestLTSV(t *testing.T) {
	_, body := ask(t, Options{}, "/api/plugins", nil)
	_, same := ask(t, Options{}, "/api/plugins.ltsv", nil)
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if body != same || len(lines) != 2 {
		t.Fatalf("%q and %q", body, same)
	}
	if want := "plugin_id:in\tplugin_category:input\ttype:forward\toutput_plugin:false\tretry_count:\temit_records:100\temit_size:5000"; lines[0] != want {
		t.Errorf("%q\nwant %q", lines[0], want)
	}
	for _, want := range []string{"plugin_id:out\t", "\tretry_count:3\t", "\tbuffer_timekeys:\t", "\tbuffer_total_queued_size:1536\t",
		"\temit_count:7\t", "\twrite_count:6\t", "\twrite_secondary_count:2\t", "\tslow_flush_count:1\t", "\tflush_time_count:1500\t", "\tdrop_oldest_chunk_count:4"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%q lacks %q", lines[1], want)
		}
	}
	if strings.Contains(body, "retry:") {
		t.Errorf("an object in LTSV: %s", body)
	}
	_, body = ask(t, Options{ConfigPath: "/etc/a\tb.conf"}, "/api/config", nil)
	if !strings.Contains(body, "\tversion:1.2.3\tconfig_path:/etc/a b.conf\n") {
		t.Errorf("%q", body)
	}
	_, body = ask(t, Options{ConfigPath: "/etc/weir/weir.conf"}, "/api/config.json", nil)
	if !strings.Contains(body, `"version":"1.2.3","config_path":"/etc/weir/weir.conf"`) {
		t.Errorf("%q", body)
	}
}

// TestFluentdMetrics: the names are those of fluent-plugin-prometheus, and there
// only when asked for.
func TestFluentdMetrics(t *testing.T) {
	if _, body := ask(t, Options{}, "/metrics", nil); strings.Contains(body, "fluentd_") {
		t.Error("fluentd's names although nobody asked")
	}
	_, body := ask(t, Options{FluentdMetrics: true}, "/metrics", nil)
	for _, want := range []string{
		`fluentd_status_buffer_queue_length{plugin_category="output",plugin_id="out",type="file"} 1`,
		`fluentd_status_buffer_total_bytes{plugin_category="output",plugin_id="out",type="file"} 1536`,
		`fluentd_status_retry_count{plugin_category="output",plugin_id="out",type="file"} 3`,
		`fluentd_output_status_emit_records{plugin_id="out",type="file"} 104`,
		`fluentd_output_status_emit_count{plugin_id="out",type="file"} 7`,
		`fluentd_output_status_flush_time_count{plugin_id="out",type="file"} 1500`,
		`fluentd_output_status_slow_flush_count{plugin_id="out",type="file"} 1`,
		`fluentd_output_status_retry_wait{plugin_id="out",type="file"} 30`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	r := prometheus.NewRegistry()
	r.MustRegister(collector{example, true})
	if _, err := testutil.GatherAndCount(r); err != nil {
		t.Error(err)
	}
}

func TestBasicAuth(t *testing.T) {
	o := Options{Username: "ops", Password: "secret", Senders: exampleSenders}
	for _, c := range []struct {
		path, user, password string
		want                 int
	}{
		{"/metrics", "", "", 401},
		{"/metrics", "ops", "wrong", 401},
		{"/metrics", "other", "secret", 401},
		{"/metrics", "ops", "secret", 200},
		{"/", "", "", 401},
		{"/", "ops", "secret", 200},
		{"/api/senders.json", "", "", 401},
		{"/api/stream", "", "", 401},
		{"/api/config.json", "", "", 401},
		{"/nothing", "", "", 401},
		{"/healthz", "", "", 200},
		{"/readyz", "", "", 200},
	} {
		code, body := ask(t, o, c.path, func(r *http.Request) {
			if c.user != "" {
				r.SetBasicAuth(c.user, c.password)
			}
		})
		if code != c.want {
			t.Errorf("%s as %s: %d %.80s", c.path, c.user, code, body)
		}
		if code == 401 && strings.Contains(body, "weir_") {
			t.Errorf("%s tells figures: %s", c.path, body)
		}
	}
}
