package main

import (
	"os"
	"regexp"
	"testing"
)

// TestLoadDoc: docs/load.md names each flag of weir load, and none that it has not.
func TestLoadDoc(t *testing.T) {
	text, err := os.ReadFile("../../docs/load.md")
	if err != nil {
		t.Fatal(err)
	}
	flag := regexp.MustCompile("--([a-z][a-z-]*)")
	has := map[string]bool{}
	for _, m := range flag.FindAllStringSubmatch(newLoadCommand().Flags().FlagUsages(), -1) {
		has[m[1]] = true
	}
	named := map[string]bool{"progress": true} // as its help has it
	for _, m := range flag.FindAllStringSubmatch(string(text), -1) {
		named[m[1]] = true
		if !has[m[1]] {
			t.Errorf("docs/load.md names --%s", m[1])
		}
	}
	for name := range has {
		if !named[name] {
			t.Errorf("docs/load.md lacks --%s", name)
		}
	}
	if len(has) < 20 {
		t.Errorf("%d flags found", len(has))
	}
}
