// Reads documents with the Node.js SDK and prints each as one line of JSON. Keys are
// the arguments behind connection string and bucket: key, or scope.collection/key.
const couchbase = require('couchbase')

async function main() {
  const [conn, name, ...keys] = process.argv.slice(2)
  const cluster = await couchbase.connect(conn, {
    username: process.env.SDK_USER,
    password: process.env.SDK_PASSWORD,
  })
  const bucket = cluster.bucket(name)
  for (const full of keys) {
    const [path, inside] = full.split('/')
    const [scope, collection] = path.split('.')
    const coll = inside ? bucket.scope(scope).collection(collection) : bucket.defaultCollection()
    const got = await coll.get(inside || full)
    console.log(JSON.stringify({ key: full, value: got.content, cas: got.cas.toString() }))
  }
  await cluster.close()
}

main().then(() => process.exit(0), (err) => {
  console.error(err)
  process.exit(1)
})
