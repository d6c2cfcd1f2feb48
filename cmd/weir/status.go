package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/config"
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
			e, err := statusEndpoint(*configPath, address)
			if err != nil {
				return err
			}
			body, err := e.fetchStatus(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(body)
				return err
			}
			var s status.Snapshot
			if err := json.Unmarshal(body, &s); err != nil {
				return fmt.Errorf("the answer of %s is not weir's: %w", e.address, err)
			}
			return status.WriteText(cmd.OutOrStdout(), &s)
		},
	}
	cmd.AddCommand(newSendersCommand(configPath, &address))
	cmd.PersistentFlags().StringVar(&address, "address", "", "host:port of the status endpoint (default: from the configuration)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// endpoint is the status endpoint of a weir and how to be let in.
type endpoint struct {
	address string
	monitor config.Monitor
	client  *http.Client
}

// statusEndpoint is the endpoint of the configuration; address replaces its
// host:port unless it is empty. With an address and no configuration it is one
// without TLS and password.
func statusEndpoint(configPath, address string) (*endpoint, error) {
	if address != "" && configPath == "" {
		return &endpoint{address: address, client: http.DefaultClient}, nil
	}
	c, err := loadConfig(configPath)
	if err != nil {
		return nil, err
	}
	return endpointOf(c, address)
}

func endpointOf(c *config.Config, address string) (*endpoint, error) {
	if address == "" {
		address = statusAddress(c)
	}
	e := &endpoint{address: address, monitor: c.Monitor, client: http.DefaultClient}
	if t := c.Monitor.TLS; t != nil {
		tc, err := statusTLS(t)
		if err != nil {
			return nil, err
		}
		e.client = &http.Client{Transport: &http.Transport{TLSClientConfig: tc}}
	}
	return e, nil
}

// statusTLS trusts the very certificate, or the CA, that the configuration names,
// whatever host name it is for; beside it those that the system trusts.
func statusTLS(t *config.TLS) (*tls.Config, error) {
	if t.CertPath == "" && t.CACertPath == "" { // made at start, signed by nobody
		return &tls.Config{InsecureSkipVerify: true}, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, path := range []string{t.CertPath, t.CACertPath} {
		if path == "" {
			continue
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("certificate of the status endpoint: %w", err)
		}
		roots.AppendCertsFromPEM(pem)
	}
	return &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		intermediates := x509.NewCertPool()
		for _, cert := range cs.PeerCertificates[1:] {
			intermediates.AddCert(cert)
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
		return err
	}}, nil
}

// get asks for a path; the answer's status is 200.
func (e *endpoint) get(ctx context.Context, path string) (*http.Response, error) {
	scheme := "http://"
	if e.monitor.TLS != nil {
		scheme = "https://"
	}
	url := scheme + e.address + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("--address %q is not a host:port: %w", e.address, err)
	}
	if e.monitor.Username != "" {
		req.SetBasicAuth(e.monitor.Username, string(e.monitor.Password))
	}
	r, err := e.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no weir answers at %s: %w; is it running, and is this the address of its monitor_agent source (-c FILE or --address HOST:PORT)?", e.address, err)
	}
	switch r.StatusCode {
	case http.StatusOK:
		return r, nil
	case http.StatusUnauthorized:
		err = fmt.Errorf("%s asks for a user name and a password; give -c FILE, the configuration that has them", url)
	default:
		err = fmt.Errorf("%s answered %s: is that weir's status endpoint?", url, r.Status)
	}
	return nil, errors.Join(err, r.Body.Close())
}

// fetchStatus reads the snapshot.
func (e *endpoint) fetchStatus(ctx context.Context) ([]byte, error) {
	return e.fetch(ctx, "/api/queues.json")
}

// fetch reads one path of the status endpoint.
func (e *endpoint) fetch(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	r, err := e.get(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", path, e.address, err)
	}
	return body, nil
}
