// Package doctor checks the machine against what weir is configured to do.
package doctor

// Severity says how bad a Finding is.
type Severity string

// The severities, from good to bad.
const (
	// OK: checked, and as it should be.
	OK Severity = "ok"
	// Note: worth knowing; nothing need be done.
	Note Severity = "note"
	// Warning: works now, and will hurt under load or later.
	Warning Severity = "warning"
	// Error: hurts now, or weir cannot start.
	Error Severity = "error"
)

// Finding is the outcome of one check.
type Finding struct {
	// Check is the check's stable name, such as "backlog" or "somaxconn".
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// Subject is what was looked at (an address, a sysctl, a path); may be empty.
	Subject string `json:"subject,omitempty"`
	// Found is what is there, with its figures.
	Found string `json:"found"`
	// Why is why it matters for this configuration.
	Why string `json:"why,omitempty"`
	// Mend is the command or the file that mends it, empty if nothing need be
	// done.
	Mend string `json:"mend,omitempty"`
	// Doc is where the documentation tells more, as docs/FILE.md#section.
	Doc string `json:"doc,omitempty"`
}
