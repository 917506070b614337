// Stands in for node modules that olm's node branch names and the browser never runs.
export default {};
