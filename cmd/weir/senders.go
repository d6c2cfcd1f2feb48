package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weir/forward"
	"weir/internal/status"
)

// senderOrders are the values by which senders can be ranked, largest first and
// equal ones by address.
var senderOrders = map[string]func(*forward.SenderStats) float64{
	"address":                func(*forward.SenderStats) float64 { return 0 },
	"heartbeats":             func(s *forward.SenderStats) float64 { return float64(s.ConnectBeats + s.NilBeats + s.UDPBeats) },
	"heartbeats_per_second":  func(s *forward.SenderStats) float64 { return s.HeartbeatsPerSecond },
	"connections":            func(s *forward.SenderStats) float64 { return float64(s.Accepted) },
	"connections_per_second": func(s *forward.SenderStats) float64 { return s.ConnectionsPerSecond },
	"open":                   func(s *forward.SenderStats) float64 { return float64(s.Open) },
	"messages":               func(s *forward.SenderStats) float64 { return float64(s.Messages) },
	"events":                 func(s *forward.SenderStats) float64 { return float64(s.Events) },
	"bytes":                  func(s *forward.SenderStats) float64 { return float64(s.Bytes) },
	"acks":                   func(s *forward.SenderStats) float64 { return float64(s.Acks) },
	"resends":                func(s *forward.SenderStats) float64 { return float64(s.Resends) },
	"invalid":                func(s *forward.SenderStats) float64 { return float64(s.Invalid) },
	"invalid_events":         func(s *forward.SenderStats) float64 { return float64(s.InvalidEvents) },
	"handshake_failures":     func(s *forward.SenderStats) float64 { return float64(s.HandshakeFailures) },
	"last_seen":              func(s *forward.SenderStats) float64 { return float64(s.Last.UnixNano()) },
}

func senderOrderNames() string { return strings.Join(slices.Sorted(maps.Keys(senderOrders)), ", ") }

// rankSenders answers /api/senders.json.
func (s *server) rankSenders(by string, limit int) (status.SenderList, error) {
	value, ok := senderOrders[by]
	if !ok {
		return status.SenderList{}, fmt.Errorf("by=%.40q is none of %s", by, senderOrderNames())
	}
	top, known := s.topSenders(value, limit)
	return status.SenderList{By: by, Known: known, Senders: top}, nil
}

// topSenders ranks the senders of all sources; the second figure is how many are
// known. One that sends to several sources is the sum of its rows.
func (s *server) topSenders(value func(*forward.SenderStats) float64, limit int) (top []status.Sender, known int) {
	var ranked []forward.SenderStats
	if len(s.sources) == 1 {
		ranked, known = s.sources[0].server.Senders(limit, value), s.sources[0].server.SendersKnown()
	} else {
		sum := map[netip.Addr]*forward.SenderStats{}
		for _, src := range s.sources {
			for _, st := range src.server.Senders(0, value) {
				if have := sum[st.Addr]; have != nil {
					addSender(have, &st)
				} else {
					sum[st.Addr] = &st
				}
			}
		}
		known = len(sum)
		for _, st := range sum {
			ranked = append(ranked, *st)
		}
		slices.SortFunc(ranked, func(a, b forward.SenderStats) int {
			return cmp.Or(cmp.Compare(value(&b), value(&a)), a.Addr.Compare(b.Addr))
		})
		if limit > 0 && len(ranked) > limit {
			ranked = ranked[:limit]
		}
	}
	top = make([]status.Sender, len(ranked))
	for i := range ranked {
		top[i] = senderRow(&ranked[i])
	}
	return top, known
}

// addSender adds the figures of one address.
func addSender(to, st *forward.SenderStats) {
	to.Open += st.Open
	to.Accepted += st.Accepted
	to.ConnectionsPerSecond += st.ConnectionsPerSecond
	to.HeartbeatsPerSecond += st.HeartbeatsPerSecond
	to.ConnectBeats += st.ConnectBeats
	to.NilBeats += st.NilBeats
	to.UDPBeats += st.UDPBeats
	to.Messages += st.Messages
	to.Events += st.Events
	to.Bytes += st.Bytes
	to.Acks += st.Acks
	to.Resends += st.Resends
	to.Invalid += st.Invalid
	to.InvalidEvents += st.InvalidEvents
	to.HandshakeFailures += st.HandshakeFailures
	if st.Last.After(to.Last) {
		to.Last = st.Last
	}
	for _, f := range st.Features {
		if !slices.Contains(to.Features, f) {
			to.Features = append(to.Features, f)
		}
	}
}

func senderRow(st *forward.SenderStats) status.Sender {
	address := "unix"
	if st.Addr.IsValid() {
		address = st.Addr.String()
	}
	return status.Sender{
		Address: address, Open: st.Open, Accepted: st.Accepted,
		ConnectionsPerSecond: st.ConnectionsPerSecond, HeartbeatsPerSecond: st.HeartbeatsPerSecond,
		Heartbeats: map[string]uint64{"connect": st.ConnectBeats, "nil": st.NilBeats, "udp": st.UDPBeats},
		Messages:   st.Messages, Events: st.Events, Bytes: st.Bytes, Acks: st.Acks, Resends: st.Resends, Invalid: st.Invalid, InvalidEvents: st.InvalidEvents,
		HandshakeFailures: st.HandshakeFailures, LastSeen: st.Last, Features: st.Features,
	}
}

func sendersPath(by string, limit int) string {
	return "/api/senders.json?by=" + url.QueryEscape(by) + "&limit=" + strconv.Itoa(limit)
}

// fetchSenders asks for the first senders by one of senderOrders.
func fetchSenders(ctx context.Context, e *endpoint, by string, limit int) (*status.SenderList, error) {
	body, err := e.fetch(ctx, sendersPath(by, limit))
	if err != nil {
		return nil, err
	}
	var list status.SenderList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("the answer is not weir's: %w", err)
	}
	return &list, nil
}

// newSendersCommand is `weir status senders`.
func newSendersCommand(configPath, address *string) *cobra.Command {
	var (
		by     string
		limit  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "senders",
		Short: "Show who sends: connections, heartbeats, events, resends by address",
		Long: `Show who sends, by address: connections and heartbeats with their rates of the
last ten seconds, messages, events, bytes, acks, resends (a chunk id that was
stored before), invalid messages and events, failed handshakes, and what of the protocol is
in use. The table holds 10,000 addresses for each source; the one not seen for
longest makes room.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, ok := senderOrders[by]; !ok {
				return fmt.Errorf("--by %q is none of %s", by, senderOrderNames())
			}
			if limit < 1 || limit > status.MaxSenderLimit {
				return fmt.Errorf("--limit %d is not between 1 and %d", limit, status.MaxSenderLimit)
			}
			e, err := statusEndpoint(*configPath, *address)
			if err != nil {
				return err
			}
			if asJSON {
				body, err := e.fetch(cmd.Context(), sendersPath(by, limit))
				if err == nil {
					_, err = cmd.OutOrStdout().Write(body)
				}
				return err
			}
			list, err := fetchSenders(cmd.Context(), e, by, limit)
			if err != nil {
				return err
			}
			return status.WriteSenders(cmd.OutOrStdout(), list)
		},
	}
	cmd.Flags().StringVar(&by, "by", "heartbeats", "rank by "+senderOrderNames())
	cmd.Flags().IntVar(&limit, "limit", 20, "how many")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
