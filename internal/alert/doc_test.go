package alert

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestDocs: docs/queues.md has every alert that there is.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/queues.md")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), "rules.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			lit, ok := v.Values[0].(*ast.BasicLit)
			if !ok || !v.Names[0].IsExported() {
				continue
			}
			name, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			names++
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("docs/queues.md lacks %s", name)
			}
		}
	}
	if names < 20 {
		t.Errorf("%d names in rules.go: has the list gone elsewhere?", names)
	}
}
