package synapse

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"gopkg.in/yaml.v3"

	"trunkline/internal/testbed/postgres"
)

// registrationSecret lets Register make users through the admin API. The server listens on loopback only.
const registrationSecret = "lab-register"

// homeserverYAML is the whole configuration. What differs from Synapse's defaults and why:
// no federation, no presence, no rate limits (tests are faster than people); turn_uris with credentials, because
// hydrogen cannot make a connection on the empty answer that Synapse gives otherwise.
func (s *Server) homeserverYAML() ([]byte, error) {
	free := map[string]int{"per_second": 10000, "burst_count": 10000}
	database, err := s.database()
	if err != nil {
		return nil, err
	}
	turn := s.cfg.TURNURIs
	if len(turn) == 0 {
		turn = []string{"stun:127.0.0.1:9"} // discard: nobody answers, host candidates suffice
	}
	return yaml.Marshal(map[string]any{
		"server_name":         s.cfg.ServerName,
		"report_stats":        false,
		"public_baseurl":      s.URL() + "/",
		"pid_file":            filepath.Join(s.dir, "homeserver.pid"),
		"signing_key_path":    filepath.Join(s.dir, "signing.key"),
		"media_store_path":    filepath.Join(s.dir, "media"),
		"log_config":          filepath.Join(s.dir, "log.yaml"),
		"listeners":           []any{s.listener()},
		"database":            database,
		"macaroon_secret_key": "lab-macaroon", "form_secret": "lab-form",
		"registration_shared_secret":  registrationSecret,
		"trusted_key_servers":         []any{},
		"suppress_key_server_warning": true,
		"presence":                    map[string]bool{"enabled": false},
		"url_preview_enabled":         false,
		"app_service_config_files":    append([]string{}, s.cfg.Registrations...),
		"turn_uris":                   turn,
		"turn_username":               "lab", "turn_password": "lab", "turn_user_lifetime": "1h",
		"rc_message": free, "rc_registration": free, "rc_joins_per_room": free, "rc_room_creation": free,
		"rc_key_requests": free, "rc_admin_redaction": free, "rc_user_directory": free, "rc_profile": free,
		"rc_login":    map[string]any{"address": free, "account": free, "failed_attempts": free},
		"rc_joins":    map[string]any{"local": free, "remote": free},
		"rc_invites":  map[string]any{"per_room": free, "per_user": free, "per_issuer": free},
		"rc_presence": map[string]any{"per_user": free},
	})
}

func (s *Server) listener() map[string]any {
	return map[string]any{
		"port": s.port, "type": "http", "tls": false, "bind_addresses": []string{"127.0.0.1"},
		"resources": []any{map[string]any{"names": []string{"client"}}},
	}
}

func (s *Server) database() (map[string]any, error) {
	if s.cfg.Postgres == nil {
		return map[string]any{
			"name": "sqlite3",
			"args": map[string]any{"database": filepath.Join(s.dir, "homeserver.db")},
		}, nil
	}
	name := "synapse_" + filepath.Base(s.dir)
	if _, err := s.cfg.Postgres.CreateDatabase(name); err != nil {
		return nil, fmt.Errorf("make Synapse's database: %w", err)
	}
	return postgresArgs(s.cfg.Postgres, name), nil
}

func postgresArgs(cluster *postgres.Cluster, name string) map[string]any {
	return map[string]any{"name": "psycopg2", "args": map[string]any{
		"user": "postgres", "dbname": name, "host": cluster.Dir(), "port": cluster.Port(), "cp_min": 2, "cp_max": 10,
	}}
}

const logYAML = `version: 1
formatters: {plain: {format: '%%(asctime)s %%(levelname)s %%(name)s %%(message)s'}}
handlers: {file: {class: logging.FileHandler, filename: %q, formatter: plain}}
root: {level: INFO, handlers: [file]}
disable_existing_loggers: false
`

// writeFiles fills the server's directory.
func (s *Server) writeFiles() error {
	config, err := s.homeserverYAML()
	if err != nil {
		return err
	}
	seed := make([]byte, 32)
	rand.Read(seed)
	for name, content := range map[string]string{
		"homeserver.yaml": string(config),
		"log.yaml":        fmt.Sprintf(logYAML, s.logFile()),
		// Format of signedjson: algorithm, version, unpadded base64 of the seed. Saves a run of --generate-keys.
		"signing.key": "ed25519 a_lab " + base64.RawStdEncoding.EncodeToString(seed) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("write Synapse's configuration: %w", err)
		}
	}
	return nil
}
