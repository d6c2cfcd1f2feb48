package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedTests: every test that a table of docs names is there. A name
// without a package is one of package forward.
func TestDocumentedTests(t *testing.T) {
	name := regexp.MustCompile("`(?:([a-z]+)\\.)?((?:Test|Fuzz)[A-Za-z0-9]+)[^`]*`")
	for _, doc := range []string{"protocol.md", "limits.md", "queues.md"} {
		b, err := os.ReadFile(filepath.Join("../../docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		found := name.FindAllStringSubmatch(string(b), -1)
		if len(found) < 20 {
			t.Errorf("%s names %d tests", doc, len(found))
		}
		for _, m := range found {
			dir := "../" + m[1]
			switch m[1] {
			case "":
				dir = "../../forward"
			case "gunzip":
				dir = "../../forward/gunzip"
			case "forward", "buffer", "netopt":
				dir = "../../" + m[1]
			}
			if !declares(t, dir, "func "+m[2]+"(") {
				t.Errorf("%s names %s, which %s does not have", doc, m[0], dir)
			}
		}
	}
}

func declares(t *testing.T, dir, decl string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), decl) {
			return true
		}
	}
	return false
}
