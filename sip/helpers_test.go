package sip_test

import gosip "github.com/emiago/sipgo/sip"

func header(name, value string) gosip.Header { return gosip.NewHeader(name, value) }
