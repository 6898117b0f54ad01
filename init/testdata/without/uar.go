package uar

const UserDataSize = 32
