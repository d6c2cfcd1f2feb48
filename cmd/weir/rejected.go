package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weir/forward"
	"weir/internal/config"
	"weir/internal/eventjson"
	"weir/internal/quarantine"
)

func newRejectedCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rejected",
		Short: "List, show, replay or drop what could never be taken",
		Long: `List, show, replay or drop what could never be taken.

A message, or the part of it, that is not valid is kept in the quarantine of its
buffer (on_invalid quarantine), with the reason, the sender and the time; the
sender has its ack. Without a command it lists.`,
		Args: cobra.NoArgs,
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "List what is in quarantine, oldest first (the default)",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return listRejected(cmd, *configPath) },
	}
	cmd.RunE = list.RunE
	cmd.AddCommand(list, newRejectedShow(configPath), newRejectedReplay(configPath), newRejectedDrop(configPath))
	return cmd
}

// rejectedItem is an item and where it lies.
type rejectedItem struct {
	quarantine.Item
	match *config.Match
	dir   string
}

// rejectedItems finds the items with these ids, or all if there are none, or
// the word all.
func rejectedItems(c *config.Config, ids []string) ([]rejectedItem, error) {
	var items []rejectedItem
	found := map[string]bool{}
	every := len(ids) == 0 || slices.Equal(ids, []string{"all"})
	for _, m := range allMatches(c) {
		dir := rejectedDir(m)
		in, err := quarantine.List(dir)
		if err != nil {
			return nil, err
		}
		for _, it := range in {
			if every || slices.Contains(ids, it.ID) {
				found[it.ID] = true
				items = append(items, rejectedItem{it, m, dir})
			}
		}
	}
	if !every {
		for _, id := range ids {
			if !found[id] {
				return nil, fmt.Errorf("nothing with the id %s is in quarantine; weir buffer rejected lists what is", id)
			}
		}
	}
	return items, nil
}

func listRejected(cmd *cobra.Command, configPath string) error {
	c, err := loadConfig(configPath)
	if err != nil {
		return err
	}
	items, err := rejectedItems(c, nil)
	if err != nil {
		return err
	}
	if len(items) == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the quarantine is empty")
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tRECEIVED\tSENDER\tTAG\tREASON\tEVENTS\tBYTES\tCAUSE")
	for _, it := range items {
		events := "?"
		if it.Events > 0 {
			events = strconv.Itoa(it.Events)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", it.ID, it.Received.Local().Format(time.DateTime), it.Sender,
			text(it.Tag), it.Reason, events, it.Size, text([]byte(it.Cause)))
	}
	return w.Flush()
}

// text quotes what would steer the terminal.
func text(b []byte) string {
	q := strconv.QuoteToGraphic(string(b))
	return q[1 : len(q)-1]
}

func newRejectedShow(configPath *string) *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one item: what is known of it, and its data as JSON as far as it can be read",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			items, err := rejectedItems(c, args)
			if err != nil {
				return err
			}
			it, data, err := quarantine.Read(items[0].dir, items[0].ID)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if raw {
				_, err := w.Write(data)
				return err
			}
			fmt.Fprintf(w, "reason    %s: %s\nsender    %s\nreceived  %s\ntag       %s\nchunk     %s\nkind      %s\nevents    %d here, %d of the same message stored\n\n",
				it.Reason, text([]byte(it.Cause)), it.Sender, it.Received.Local().Format(time.RFC3339Nano), text(it.Tag), text(it.Chunk), it.Kind, it.Events, it.Stored)
			return showData(cmd, it, data)
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "write the data alone, byte for byte")
	return cmd
}

// showData writes data as JSON, a value on each line, and what is no msgpack in
// hexadecimal.
func showData(cmd *cobra.Command, it quarantine.Item, data []byte) error {
	w := cmd.OutOrStdout()
	if it.Kind == string(forward.InvalidJSON) {
		_, err := fmt.Fprintf(w, "%s\n", data)
		return err
	}
	for len(data) > 0 {
		line, n, err := eventjson.AppendValue(nil, data)
		if err != nil {
			fmt.Fprintf(w, "%v; %d bytes from here on:\n", err, len(data))
			_, err := fmt.Fprint(w, hex.Dump(data))
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n", line); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func newRejectedDrop(configPath *string) *cobra.Command {
	return &cobra.Command{
		Use:   "drop ID... | all",
		Short: "Remove items for good",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			items, err := rejectedItems(c, args)
			if err != nil {
				return err
			}
			for _, it := range items {
				if err := quarantine.Remove(it.dir, it.ID); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d dropped\n", len(items))
			return err
		},
	}
}

func newRejectedReplay(configPath *string) *cobra.Command {
	var to, ca string
	cmd := &cobra.Command{
		Use:   "replay ID... | all",
		Short: "Send items again, and remove those that are acked",
		Long: `Send items again, to the weir of the configuration or to another receiver, and
remove those that are acked. What is not valid even now goes to the receiver's
quarantine once more, so that nothing is lost.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			items, err := rejectedItems(c, args)
			if err != nil {
				return err
			}
			return replay(cmd, c, items, to, ca)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "host:port or unix:/path of the receiver (default: the source that the item's match belongs to)")
	cmd.Flags().StringVar(&ca, "ca", "", "PEM file with the CA of a receiver with TLS (default: the cert_path of the source)")
	return cmd
}

// replay sends each item on a connection of its own: JSON and msgpack do not mix.
func replay(cmd *cobra.Command, c *config.Config, items []rejectedItem, to, ca string) error {
	sent := 0
	var errs []error
	for _, it := range items {
		if err := replayOne(cmd, c, it, to, ca); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", it.ID, err))
			continue
		}
		sent++
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%d of %d sent again and acked\n", sent, len(items)); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func replayOne(cmd *cobra.Command, c *config.Config, it rejectedItem, to, ca string) error {
	_, data, err := quarantine.Read(it.dir, it.ID)
	if err != nil {
		return err
	}
	chunk := "rejected-" + it.ID
	message, err := (&forward.Invalid{Kind: forward.InvalidKind(it.Kind), Tag: it.Tag, Data: data}).Replayable(chunk)
	if err != nil {
		return fmt.Errorf("%w; weir buffer rejected show --raw writes it out", err)
	}
	target, err := replayTarget(c, it.match, to, ca)
	if err != nil {
		return err
	}
	client, err := forward.Dial(cmd.Context(), target)
	if err != nil {
		return err
	}
	if err := errors.Join(client.Send(message, chunk), client.Close()); err != nil {
		return err
	}
	return quarantine.Remove(it.dir, it.ID)
}

// replayTarget is the receiver: the first source of the match's label.
func replayTarget(c *config.Config, m *config.Match, to, ca string) (forward.SenderConfig, error) {
	var target forward.SenderConfig
	i := slices.IndexFunc(c.Sources, func(s *config.Source) bool { return s.Label == m.Label })
	if i < 0 {
		return target, fmt.Errorf("no <source> leads to <match %s>; give --to", m.Pattern)
	}
	src := c.Sources[i]
	if to == "" {
		to = loopbackAddress(src.Addresses[0])
	}
	target.Address = to
	if sec := src.Security; sec != nil {
		target.SharedKey = string(sec.SharedKey)
		for name, password := range sec.Users {
			target.Username, target.Password = name, string(password)
			break
		}
	}
	if src.TLS == nil && ca == "" {
		return target, nil
	}
	return target, trust(&target, src.TLS, ca)
}

// trust makes the TLS configuration: the receiver must have a certificate of the
// file, which is the source's own without --ca.
func trust(target *forward.SenderConfig, t *config.TLS, ca string) error {
	if ca == "" && t != nil {
		ca = t.CertPath
	}
	if ca == "" {
		return errors.New("the source has a certificate made at start; give --ca with a file that signs for it, or --to with another receiver")
	}
	b, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s holds no certificate in PEM", ca)
	}
	target.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if t != nil && ca == t.CertPath {
		// The receiver is this host, whatever its certificate calls it.
		target.TLS.ServerName, err = certificateName(b)
	}
	return err
}

// certificateName is a name that the first certificate of a PEM file is valid for.
func certificateName(b []byte) (string, error) {
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return "", err
	case len(cert.DNSNames) > 0:
		return strings.Replace(cert.DNSNames[0], "*", "x", 1), nil
	case len(cert.IPAddresses) > 0:
		return cert.IPAddresses[0].String(), nil
	}
	return "", errors.New("the certificate of cert_path is valid for no name: give --to and --ca")
}

// loopbackAddress turns a wildcard into loopback.
func loopbackAddress(address string) string {
	if strings.HasPrefix(address, "unix:") {
		return address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}
