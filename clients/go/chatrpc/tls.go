package chatrpc

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// LoadAuthorities returns the authorities in a PEM file, for tls.Config.RootCAs.
func LoadAuthorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate; use a PEM file", file)
	}
	return pool, nil
}

// LoadCertificate returns the client certificate in a PEM file and the key in another, for tls.Config.Certificates.
func LoadCertificate(certFile, keyFile string) (tls.Certificate, error) {
	certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return certificate, fmt.Errorf("%s, %s: %w; use PEM files of a certificate and its unencrypted key",
			certFile, keyFile, err)
	}
	return certificate, nil
}
