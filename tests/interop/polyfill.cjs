// js-libp2p wants Node 22; this is all of it that Node 20 lacks.
Promise.withResolvers ??= function () {
  const made = {}
  made.promise = new this((resolve, reject) => Object.assign(made, { resolve, reject }))
  return made
}
