module example.com/cbtransfer-webhook

go 1.26.0

require github.com/cbpump/cbpump v0.0.0

require (
	github.com/fatih/color v1.13.0 // indirect
	github.com/hashicorp/go-hclog v1.6.3 // indirect
	github.com/mattn/go-colorable v0.1.12 // indirect
	github.com/mattn/go-isatty v0.0.14 // indirect
	github.com/mitchellh/mapstructure v1.5.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/cbpump/cbpump => ../..
