package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v2"

	"weir/forward"
)

// TestDashboardAndRules: every expression in deploy/ parses, and every series
// that it names, with its labels, is one that a running weir exposes.
func TestDashboardAndRules(t *testing.T) {
	w := start(t, options{match: "<match app.**>\n  @type null\n  @id out\n</match>\n"})
	cl, err := forward.Dial(t.Context(), forward.SenderConfig{Address: w.addr})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for chunk, message := range map[string]string{
		"c1": "\x94\xa5app.x\x01\x80\x81\xa5chunk\xa2c1",
		"c2": "\x93\xa5app.x\x92\x92\x01\x80\x05\x81\xa5chunk\xa2c2", // an entry that is no event
		"c3": "\x94\xa5other\x01\x80\x81\xa5chunk\xa2c3",             // no match takes it
	} {
		if err := cl.Send([]byte(message), chunk); err != nil {
			t.Fatalf("%s: %v", chunk, err)
		}
	}
	bad, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	if _, err := bad.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	exprs, err := rulesExprs("../../deploy/prometheus/weir.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	panels, err := dashboardExprs("../../deploy/grafana/weir.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(exprs) < 5 || len(panels) < 20 {
		t.Fatalf("%d rules, %d panels' expressions: something is not read", len(exprs), len(panels))
	}
	var metrics string
	var missing error
	waitFor(t, patience, func() error {
		r, err := http.Get("http://" + w.status + "/metrics")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		metrics = string(b)
		missing = nil
		for _, e := range append(exprs, panels...) {
			missing = errors.Join(missing, exposed(e, metrics))
		}
		return missing
	})
	if err := exposed(`weir_no_such_metric > 1`, metrics); err == nil {
		t.Error("a metric that weir does not have is not found out")
	}
	if err := exposed(`weir_queue_depth{kind="accept"}`, metrics); err == nil {
		t.Error("a label that weir does not have is not found out")
	}
}

// fromPrometheus are the labels and the series that Prometheus adds.
var fromPrometheus = map[string]bool{"instance": true, "job": true, "__name__": true, "up": true}

// exposed reports whether an expression parses and what it selects exists.
func exposed(expr, metrics string) error {
	p := parser.NewParser(parser.Options{})
	tree, err := p.ParseExpr(expr)
	if err != nil {
		return fmt.Errorf("%s: %w", expr, err)
	}
	var missing []error
	parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok || fromPrometheus[s.Name] {
			return nil
		}
		series := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(s.Name)+`(\{.*\})? `).FindAllString(metrics, -1)
		if len(series) == 0 {
			missing = append(missing, fmt.Errorf("%s: weir has no %s", expr, s.Name))
		}
		for _, m := range s.LabelMatchers {
			if !fromPrometheus[m.Name] && !strings.Contains(strings.Join(series, ""), m.Name+`="`) {
				missing = append(missing, fmt.Errorf("%s: %s has no label %s", expr, s.Name, m.Name))
			}
			if m.Type == labels.MatchEqual && m.Name == "queue" && !strings.Contains(strings.Join(series, ""), `queue="`+m.Value+`"`) {
				missing = append(missing, fmt.Errorf("%s: there is no queue %s", expr, m.Value))
			}
		}
		return nil
	})
	return errors.Join(missing...)
}

func rulesExprs(path string) (exprs []string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalStrict(b, &file); err != nil {
		return nil, err
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
				return nil, fmt.Errorf("a rule lacks its name, summary or severity: %+v", r)
			}
			exprs = append(exprs, r.Expr)
		}
	}
	return exprs, nil
}

func dashboardExprs(path string) (exprs []string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		return nil, err
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*")
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			return nil, fmt.Errorf("panel %d lacks something: %+v", p.ID, p)
		}
		for _, target := range p.Targets {
			exprs = append(exprs, variables.Replace(target.Expr))
		}
	}
	return exprs, nil
}
