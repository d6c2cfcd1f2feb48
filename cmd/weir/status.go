package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/status"
)

// statusTimeout bounds one request of `weir status`.
const statusTimeout = 10 * time.Second

func newStatusCommand(configPath *string) *cobra.Command {
	var (
		address string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the queues of a running weir",
		Long: `Show the queues of a running weir: each stage on the way of the data with its
depth, capacity, peak and drops, and for each output the sum
recovered + received = delivered + buffered + dropped.

The status endpoint's address is taken from the configuration (-c), or from
--address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				c, err := loadConfig(*configPath)
				if err != nil {
					return err
				}
				address = statusAddress(c)
			}
			body, err := fetchStatus(cmd.Context(), address)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(body)
				return err
			}
			var s status.Snapshot
			if err := json.Unmarshal(body, &s); err != nil {
				return fmt.Errorf("the answer of %s is not weir's: %w", address, err)
			}
			return status.WriteText(cmd.OutOrStdout(), &s)
		},
	}
	cmd.AddCommand(newSendersCommand(configPath, &address))
	cmd.PersistentFlags().StringVar(&address, "address", "", "host:port of the status endpoint (default: from the configuration)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// fetchStatus reads the snapshot of the weir whose status endpoint is address.
func fetchStatus(ctx context.Context, address string) ([]byte, error) {
	return fetch(ctx, address, "/api/queues.json")
}

// fetch reads one path of the status endpoint.
func fetch(ctx context.Context, address, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	url := "http://" + address + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("--address %q is not a host:port: %w", address, err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no weir answers at %s: %w; is it running, and is this the address of its monitor_agent source (-c FILE or --address HOST:PORT)?", address, err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s: is that weir's status endpoint?", url, r.Status)
	}
	return body, nil
}
