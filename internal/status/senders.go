package status

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"weir/internal/queue"
)

// MaxSenderLimit is the most senders that one answer holds.
const MaxSenderLimit = 10_000

// defaultSenderLimit is for requests without a limit.
const defaultSenderLimit = 20

// SenderList is the answer of /api/senders.json: the first of all senders, by
// one of their figures.
type SenderList struct {
	By      string   `json:"by"`
	Known   int      `json:"senders_known"`
	Senders []Sender `json:"senders"`
}

// sendersJSON answers /api/senders.json?by=&limit=.
func (s *Server) sendersJSON(w http.ResponseWriter, r *http.Request) {
	by, limit := r.URL.Query().Get("by"), defaultSenderLimit
	if by == "" {
		by = "heartbeats"
	}
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxSenderLimit {
			http.Error(w, fmt.Sprintf("limit is not a number from 1 to %d", MaxSenderLimit), http.StatusBadRequest)
			return
		}
		limit = n
	}
	list, err := s.options.Senders(by, limit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.json(w, list)
}

// WriteSenders writes the list as a table.
func WriteSenders(w io.Writer, list *SenderList) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%d senders known, the first %d by %s\n\n", list.Known, len(list.Senders), list.By)
	t := newTable(b)
	fmt.Fprintln(t, "SENDER\tOPEN\tCONNECTIONS\t/s\tHEARTBEATS\t/s\tMESSAGES\tEVENTS\tBYTES\tACKS\tRESENDS\tINVALID\tINVALID EVENTS\tFAILED\tLAST SEEN\tUSES\t")
	for _, x := range list.Senders {
		fmt.Fprintf(t, "%s\t%d\t%d\t%.1f\t%s\t%.1f\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", Printable(x.Address), x.Open, x.Accepted,
			x.ConnectionsPerSecond, counts(x.Heartbeats), x.HeartbeatsPerSecond, x.Messages, x.Events, Amount(int64(x.Bytes), queue.UnitBytes),
			x.Acks, x.Resends, x.Invalid, x.InvalidEvents, x.HandshakeFailures, x.LastSeen.Format("15:04:05"), Printable(strings.Join(x.Features, ",")))
	}
	t.flush()
	return b.Flush()
}
