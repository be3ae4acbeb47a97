package cli

// The help texts are written by hand, so that flags that belong together stand
// together. A test holds them against the declared flags.

const loginHelp = `
Credentials
  -u, --username NAME                  REST user of the source
  -p, --password PASSWORD              REST password of the source
      --password-file FILE             the same, from the first line of FILE
  -U, --username-destination NAME      REST user of the destination
  -P, --password-destination PASSWORD  REST password of the destination
      --password-destination-file FILE the same, from the first line of FILE

  Without flags the environment is asked: CB_REST_USERNAME, CB_REST_PASSWORD,
  CB_REST_USERNAME_DEST, CB_REST_PASSWORD_DEST. A user name without a password is
  asked for on the terminal. A password on the command line can be seen by other
  users for a moment; a file or the environment is better.
`

const securityHelp = `
Security
      --cacert FILE                    trust the authorities in this PEM file, in place
                                       of the system's; it may hold those of both sides
      --client-cert FILE               our certificate, where a cluster wants one
      --client-key FILE                and its key
      --no-ssl-verify                  trust any certificate: whoever sits between can
                                       read and change everything
      --network WHICH                  by which of their addresses nodes are reached:
                                       auto, default or external (default auto)

  https:// and couchbases:// speak TLS 1.2 or later to REST and data ports.
`

const limitsHelp = `      --limit-items N                  read at most so many items a second
      --limit-bytes SIZE               read at most so many bytes a second, such as 20m
      --limits FILE                    the same from lines items=N and bytes=SIZE of FILE,
                                       which may be changed while the run goes on
`

const outputHelp = `
Output
  -v, --verbose                        more log on stderr: -v, -vv, -vvv
  -s, --silent                         say nothing but errors
      --json                           one JSON object per line on stdout
      --pprof WHERE                    profile the run: into this file, or served on this
                                       address of this machine (127.0.0.1:6060)
      --redact                         a keyed hash in the place of each key, in all that
                                       is said; files of data keep their keys
      --version                        print the version
  -h, --help                           print this
`

const exitHelp = `
Exit codes
  0 complete; 1 failed, run it again; 2 wrong use; 3 complete, but items were
  rejected or skipped; 4 an endpoint cannot be reached or denies access;
  130, 143 stopped by SIGINT, SIGTERM. The first signal stops reading and finishes
  what was read; the second stops at once.
`

const transferHelp = `cbtransfer copies items from any source to any destination.

  cbtransfer [flags] SOURCE DESTINATION
  cbtransfer compare [flags] SOURCE DESTINATION

SOURCE and DESTINATION are addresses of the form scheme://host:port, or files.
--list-plugins lists the schemes and their options.

What is copied
  -b, --bucket-source NAME             bucket to read (default "default")
  -B, --bucket-destination NAME        bucket to write (default: like the source)
  -i, --id VBUCKET                     only this vbucket
      --vbucket-list LIST              only these: 500,612 or 500-520 or [500,612]
  -k, --key REGEXP                     only keys in which REGEXP is found (RE2)
      --single-node                    only the node that SOURCE names
      --destination-operation OP       set, add or get
  -n, --dry-run                        check both ends, copy nothing

What the destination refuses
      --dead-letters FILE              keep rejected items there, as jsonl with reasons;
                                       none keeps none (default: rejected-TIME.jsonl, made
                                       when there is one)
      --max-rejected N                 stop beyond so many; 0 stops at the first
                                       (default 10000)
` + loginHelp + securityHelp + `
Running
  -t, --threads N                      parallel writers, up to 256 (default: the sink's
                                       choice)
` + limitsHelp + `  -x, --extra NAME=VALUE               an option of engine, source or sink; may be
                                       repeated, or a=1,b=2
      --checkpoint FOLDER              save the progress there, so that a run that ended
                                       early can be gone on with
      --resume                         go on from the checkpoint
      --list-plugins                   list sources, sinks and options

Comparing
  compare, as the first word, copies nothing and compares; a file of that name is
  written ./compare.
      --verify MODE                    compare, after the copy too: count, digest or
                                       full (compare: default full)
      --differences FILE               write what the source has of keys that differ to
                                       this jsonl file, which repairs the destination
      --delete-extra                   with --differences: also delete what only the
                                       destination has
      --compare-memory SIZE            memory for comparing; the rest goes to temporary
                                       files (default 64m)
      --temp-dir DIR                   where these go (default: TMPDIR)

  The exit code is 3 if the sides differ, and 1 if one could not be read whole.
` + outputHelp + exitHelp + `
  The destination takes -u and -p where nothing is said about it.

Examples
  cbtransfer http://10.1.2.3:8091 memcached://10.9.9.9:11211 -b beer-sample
  cbtransfer http://a:8091 http://b:8091 -b old -B new -u admin --password-file pw
  cbtransfer tap://10.1.2.3:11210 null: --vbucket-list 0-31 --json
  cbtransfer gen:?max-items=1000 memcached://127.0.0.1:11211 -x batch-bytes=64k
`

const recoveryHelp = `cbrecovery gets back the vbuckets that a cluster lost, from another cluster that
still holds them.

  cbrecovery [flags] RESTORE_FROM RESTORE_TO

RESTORE_FROM is the source cluster to restore data from, such as
http://10.1.2.3:8091; RESTORE_TO the destination cluster to restore data to, such
as http://10.3.4.5:8091. Any node will do.

What is recovered
  -b, --bucket-source NAME             bucket to recover from (default "default")
  -B, --bucket-destination NAME        bucket to recover to (default "default")
  -l, --vbucket-list LIST              only these of the missing vbuckets: 500,612 or
                                       500-520 or [500,612]
  -a, --add-node HOST:PORT             add this node in the place of the removed one
  -r, --remove-node HOST:PORT          the failed-over node that is replaced; -a and -r
                                       go together
  -n, --dry-run                        show the plan, change nothing
` + loginHelp + securityHelp + `
Running
      --recovery-api API               auto, proposal or controller (default auto)
      --resume                         go on with a recovery that is under way at the
                                       destination (controller)
      --checkpoint FOLDER              keep there which vbuckets have come whole, so that
                                       a run that was killed need not fetch them again
      --verify MODE                    how closely a vbucket is compared with the source
                                       before it is made active: count, digest or full
                                       (default digest)
      --transfer HOW                   how vbuckets are pushed: auto, tap, dcp or
                                       with-meta (default auto)
  -t, --threads N                      parallel writers, up to 256 (default: the sink's
                                       choice)
` + limitsHelp + `  -x, --extra NAME=VALUE               an option of the engine, the source or the sink;
                                       may be repeated, or a=1,b=2
` + outputHelp + exitHelp + `
  A vbucket is made active only when every item of it is confirmed and it was read
  back and found like the source (--verify). What is left is named; running the
  same command again does only that.

Examples
  cbrecovery http://10.1.2.3:8091 http://10.3.4.5:8091 -n -U admin
  cbrecovery http://10.1.2.3:8091 http://10.3.4.5:8091 -b orders -B orders \
      -a 10.3.4.9:8091 -r 10.3.4.7:8091 -u admin -U admin
  cbrecovery http://10.1.2.3:8091 http://10.3.4.5:8091 -l 500-520
`
