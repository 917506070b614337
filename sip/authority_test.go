package sip_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"trunkline/sip"
)

// authority signs certificates for 127.0.0.1 and the name it is told.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var authorityOnce = sync.OnceValue(func() *authority { return newAuthority("lab CA") })

func newAuthority(name string) *authority {
	a := &authority{cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) certificate(name string) tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

type certFiles struct{ ca, both string }

// files writes a certificate with its key, and the CA, for programs that read files.
func (a *authority) files(t *testing.T, dir, name string) certFiles {
	t.Helper()
	c := a.certificate(name)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	f := certFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "both.pem")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	for path, b := range map[string][]byte{f.ca: ca, f.both: both} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestCertificatesAreChecked(t *testing.T) {
	other := newAuthority("another CA")
	config := testConfig(sip.TLS)
	config.Trunks[0].ClientCAs = authorityOnce().pool()
	b := newBed(t, config, nil)
	options := func(name string, c *tls.Config) string {
		c.RootCAs = authorityOnce().pool()
		conn, err := tls.Dial("tcp", b.addr(sip.TLS), c)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(conn, "OPTIONS sips:x@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1;branch=z9hG4bK%s\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:x@y>\r\nCall-ID: %[1]s\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n", name)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return "closed"
		}
		return strings.TrimSpace(line)
	}
	if got := options("good", &tls.Config{Certificates: []tls.Certificate{authorityOnce().certificate("phone")}}); got != "SIP/2.0 200 OK" {
		t.Errorf("with a good certificate: %s", got)
	}
	if got := options("none", &tls.Config{}); got != "closed" {
		t.Errorf("without a certificate: %s", got)
	}
	if got := options("other", &tls.Config{Certificates: []tls.Certificate{other.certificate("phone")}}); got != "closed" {
		t.Errorf("with a certificate of another authority: %s", got)
	}
	failed := func() uint64 { return b.stack.Stats().Dropped["TLS handshake"] }
	await(t, "both refusals to be counted", func() bool { return failed() >= 2 }) // who is refused hears of it before
	if n := failed(); n != 2 {
		t.Errorf("%d handshakes failed, want 2", n)
	}
	// And we check theirs, while they check ours: wrong authority, wrong name, and then the right ones.
	far := newBed(t, config, nil)
	own := []tls.Certificate{authorityOnce().certificate("near")}
	for _, tt := range []struct {
		name string
		tls  *tls.Config
		ok   bool
	}{
		{"another authority", &tls.Config{RootCAs: other.pool(), Certificates: own}, false},
		{"another name", &tls.Config{RootCAs: authorityOnce().pool(), ServerName: "elsewhere", Certificates: own}, false},
		{"right", &tls.Config{RootCAs: authorityOnce().pool(), ServerName: "bridge", Certificates: own}, true},
	} {
		config := testConfig(sip.TLS)
		config.Trunks[0].TLS, config.Trunks[0].Proxy, config.Trunks[0].Transport = tt.tls, far.addr(sip.TLS), sip.TLS
		near := newBed(t, config, nil)
		s := near.dial(sip.DialRequest{Trunk: "lab", Number: "1000"})
		if !tt.ok {
			if e := s.wants(sip.Refused{}).(sip.Refused); e.Code != 503 || !e.Local {
				t.Errorf("%s: %+v", tt.name, e)
			}
			continue
		}
		s.wants(sip.Answered{}) // two bridges talk to each other, encrypted
		c := far.call()
		c.wants(sip.Acked{})
		if a, z := s.Dialog().Media.Crypto, c.Dialog().Media.Crypto; a.Local != z.Remote || a.Remote != z.Local || a.Suite != "AES_CM_128_HMAC_SHA1_80" {
			t.Errorf("%s: the ends do not have the same keys", tt.name)
		}
		_ = c.Hangup(sip.CauseNormal) // over the connection that is there
		s.wants(sip.Bye{})
	}
	for i, certificates := range [][]tls.Certificate{nil, {other.certificate("near")}} { // none of ours, and one that it does not trust
		config := testConfig(sip.TLS)
		config.Trunks[0].TLS = &tls.Config{RootCAs: authorityOnce().pool(), ServerName: "bridge", Certificates: certificates}
		config.Trunks[0].Proxy, config.Trunks[0].Transport = far.addr(sip.TLS), sip.TLS
		_ = newBed(t, config, nil).dial(sip.DialRequest{Trunk: "lab", Number: "1000"})
		await(t, fmt.Sprint("connection ", i, " to be refused"), func() bool { return far.stack.Stats().Dropped["TLS handshake"] >= uint64(3+i) }) // two were those that we refused
	}
	if len(far.calls) != 0 {
		t.Error("a call came over a connection without a good certificate")
	}
}

func TestConnectionsAreReused(t *testing.T) { // both directions, RFC 5923 in spirit: one connection serves the dialog
	far := newBed(t, testConfig(sip.TCP), nil)
	config := testConfig(sip.TCP)
	config.Trunks[0].Proxy, config.Trunks[0].Transport = far.addr(sip.TCP), sip.TCP
	near := newBed(t, config, nil)
	for range 3 {
		s := near.dial(sip.DialRequest{Trunk: "lab", Number: "1000"})
		s.wants(sip.Answered{})
		c := far.call()
		c.wants(sip.Acked{})
		if from := netip.MustParseAddrPort(c.Info().Source); from != far.firstSource(from) {
			t.Errorf("call came over %v, the first over %v", from, far.firstSource(from))
		}
		_ = c.Hangup(sip.CauseNormal)
		s.wants(sip.Ended{})
	}
}
