package doctor

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocs: every check has its section in docs/doctor.md, and every section is
// that of a check.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var sections, names []string
	for line := range strings.Lines(string(text)) {
		if title, found := strings.CutPrefix(strings.TrimSpace(line), "## "); found {
			sections = append(sections, title)
		}
	}
	for _, c := range checks() {
		names = append(names, c.name)
	}
	if !slices.Equal(sections, names) {
		t.Errorf("sections %q\nchecks   %q", sections, names)
	}
}
